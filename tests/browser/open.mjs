// Opens a page in Chromium in each window and scheme, and prints what it found as JSON.
// Usage: node open.mjs CHROMIUM PAGE [FOLDER for screenshots]
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';

const [executablePath, page_path, folder] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const address = pathToFileURL(page_path).href;
const windows = { desktop: { width: 1280, height: 900 }, phone: { width: 390, height: 844 } };

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
const found = [];
for (const [window, viewport] of Object.entries(windows)) {
  for (const colorScheme of ['light', 'dark']) {
    const context = await browser.newContext({ viewport, colorScheme });
    const page = await context.newPage();
    const messages = [], requests = [];
    page.on('console', (m) => ['error', 'warning'].includes(m.type()) && messages.push(m.text()));
    page.on('pageerror', (e) => messages.push(String(e)));
    page.on('request', (r) => r.url() === address || r.url().startsWith('data:') || requests.push(r.url()));
    await page.goto(address);
    if (folder) await page.screenshot({ path: join(folder, `${window}_${colorScheme}.png`), fullPage: true });
    // Folded parts are checked too.
    await page.evaluate(() => document.querySelectorAll('details').forEach((d) => { d.open = true; }));
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => axe.run());
    const stops = [];
    await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
    for (let i = 0; i < 15; i++) {
      await page.keyboard.press('Tab');
      stops.push(await page.evaluate(() => {
        const element = document.activeElement;
        return { href: element.getAttribute('href'), outline: getComputedStyle(element).outlineStyle };
      }));
    }
    found.push({
      window, colorScheme, messages, requests, stops,
      violations: violations.map((v) => ({ id: v.id, help: v.help, nodes: v.nodes.slice(0, 5).map((n) => `${n.html.slice(0, 160)} ${n.failureSummary}`) })),
      sections: await page.$$eval('main section', (all) => all.map((s) => s.id)),
      overflow: await page.evaluate(() => document.documentElement.scrollWidth - innerWidth),
      paper: await page.evaluate(() => getComputedStyle(document.body).backgroundColor),
      broken: await page.$$eval('img', (all) => all.filter((i) => !i.complete || !i.naturalWidth).map((i) => i.alt)),
    });
    await context.close();
  }
}
await browser.close();
console.log(JSON.stringify(found, null, 1));
