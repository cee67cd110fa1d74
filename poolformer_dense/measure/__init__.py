"""What is measured: models, speed, the published results; and the drawn shapes to measure on."""
