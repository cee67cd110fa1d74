// Passes over maps that torch has no single operator for; `native.py` calls them.
//
// A map is float32 in channels-last order: (samples, height, width, channels), also seen as rows,
// one a pixel. T is the dtype of matrix products, float or bfloat16. `first` is the index of the
// first row that a call gets, `area` how many rows a sample has.
//
// No header of Python or torch: one library serves all their versions, and builds in seconds.
// `library.py` compiles it. OpenMP is the one that torch has loaded.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using std::int64_t;

namespace {

struct bfloat16 {
  uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bfloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline void store(float& to, float value) { to = value; }

// Rounds to nearest, ties to even.
inline void store(bfloat16& to, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to.bits = uint16_t(value == value ? rounded : 0x7fc0);
}

// Stores `count` values by the processor's own instruction, rounded as `store` does.
__attribute__((target("avx512f,avx512bf16"))) void convert(bfloat16* to, const float* values,
                                                           int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256bh sixteen = _mm512_cvtneps_pbh(_mm512_loadu_ps(values + i));
    std::memcpy(to + i, &sixteen, sizeof sixteen);
  }
  for (; i < count; ++i) store(to[i], values[i]);
}

// Loops compute rows in pieces that stay in the closest cache: floats where they belong, others in
// a buffer from which `finish` stores them.
constexpr int64_t PIECE = 256;

inline float* place(float* to, float*) { return to; }
inline float* place(bfloat16*, float* buffer) { return buffer; }
inline void finish(float*, const float*, int64_t) {}

inline void finish(bfloat16* to, const float* values, int64_t count) {
  static const bool has_instruction = __builtin_cpu_supports("avx512bf16");
  if (has_instruction) return convert(to, values, count);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) store(to[i], values[i]);
}

// Calls body(begin, end, worker) on shares of 0..count; `cost` is in elements of each.
template <class Body>
int parallel(int64_t count, int64_t cost, int64_t threads, Body body) {
  const int64_t most = std::min(threads, 1 + count * cost / 16384);
  const int workers = int(std::max<int64_t>(1, std::min(most, count)));
  if (workers == 1) {
    body(int64_t(0), count, 0);
    return 1;
  }
#pragma omp parallel num_threads(workers)
  {
    // OpenMP may grant fewer.
    for (int i = omp_get_thread_num(); i < workers; i += omp_get_num_threads())
      body(count * i / workers, count * (i + 1) / workers, i);
  }
  return workers;
}

// Calls body(sample, begin, end) on the shares of first..last that samples have, from 0.
template <class Body>
void by_sample(int64_t first, int64_t last, int64_t area, Body body) {
  for (int64_t begin = first; begin < last;) {
    const int64_t sample = begin / area, end = std::min(last, (sample + 1) * area);
    body(sample, begin - first, end - first);
    begin = end;
  }
}

// Adds to `totals` what row(index, sums) adds to its `width` sums, for each of 0..count. Sums of 16
// rows are in float32, those of all in float64, in an order that does not vary.
template <class Row>
void sum_rows(int64_t count, int64_t width, int64_t threads, double* totals, Row row) {
  std::vector<double> wide(threads * width, 0.0);
  const int workers = parallel(count, width, threads, [&](int64_t begin, int64_t end, int worker) {
    std::vector<float> sums(width);
    double* into = wide.data() + worker * width;
    while (begin < end) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (const int64_t stop = std::min(end, begin + 16); begin < stop; ++begin)
        row(begin, sums.data());
      for (int64_t i = 0; i < width; ++i) into[i] += sums[i];
    }
  });
  for (int worker = 0; worker < workers; ++worker)
    for (int64_t i = 0; i < width; ++i) totals[i] += wide[worker * width + i];
}

// v * Polynomial(v^2) + 1/2 up to |v| = limit, beyond it 0 below and what it is at the limit above:
// minimax fits, in t = 2 v^2/limit^2 - 1, so that no digits cancel.
template <int N>
inline float sigmoidal(float v, const float (&coefficients)[N], float limit) {
  const float clamped = std::min(std::max(v, -limit), limit);
  const float t = clamped * clamped * (2 / (limit * limit)) - 1;
  float sum = coefficients[N - 1];
#pragma GCC unroll 32
  for (int i = N - 2; i >= 0; --i) sum = sum * t + coefficients[i];
  const float value = clamped * sum + 0.5f;
  return v > -limit ? value : 0.0f;
}

// The normal distribution function, and the derivative of v times it (GELU). Largest errors: 1e-7
// and 2e-7 for float, 4e-6 and 1e-5 for bfloat16.
constexpr float CDF[] = {
    0.13465935f,     -0.067126818f,   0.0496457852f,   -0.0397634134f, 0.0320314392f,
    -0.0250419322f,  0.0185386483f,   -0.0127752498f,  0.00841787085f, -0.00544852018f,
    0.00289236079f,  -0.00103953423f, 0.000664732594f, -0.000656583929f, 0.000239950008f};
constexpr float SLOPE[] = {
    0.123071827f,   -0.0622814074f, 0.0493672229f,    -0.0472942367f, 0.0517064855f,
    -0.059524443f,  0.0667545944f,  -0.0705782399f,   0.0693850592f,  -0.0593592077f,
    0.0431630015f,  -0.0349285081f, 0.0316930823f,    -0.0162202176f, 0.00106214429f,
    -0.00283231353f, 0.00621706014f, -0.00244536065f};
constexpr float CDF_SHORT[] = {
    0.156905085f,   -0.0771922842f, 0.0546917543f,  -0.0401344746f,  0.0283720735f, -0.0189148281f,
    0.0111570442f, -0.005413251f,  0.00307921157f, -0.00225916086f, 0.000819342735f};
constexpr float SLOPE_SHORT[] = {
    0.142133653f, -0.0750997886f, 0.0665815324f, -0.0720791146f, 0.080213815f, -0.0819138661f,
    0.0806352347f, -0.0773051456f, 0.0513890721f, -0.0178737398f, 0.0177255739f, -0.0246615112f,
    0.0102562886f};

inline float cdf(float v, float) { return sigmoidal(v, CDF, 5.25f); }
inline float cdf(float v, bfloat16) { return sigmoidal(v, CDF_SHORT, 4.5f); }
inline float slope(float v, float) { return sigmoidal(v, SLOPE, 5.75f); }
inline float slope(float v, bfloat16) { return sigmoidal(v, SLOPE_SHORT, 5.0f); }

// (x - mean) * rstd * weight + bias, of `count` rows.
template <class T>
void normalize(const float* x, const float* mean, const float* rstd, const float* weight,
               const float* bias, T* out, int64_t first, int64_t count, int64_t area,
               int64_t channels, int64_t threads) {
  parallel(count, channels, threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> gain(channels);
    by_sample(first + begin, first + end, area, [&](int64_t sample, int64_t from, int64_t to) {
      const float middle = mean[sample];
      for (int64_t c = 0; c < channels; ++c) gain[c] = rstd[sample] * weight[c];
      const float* factor = gain.data();
      for (int64_t row = begin + from; row < begin + to; ++row) {
        const float* in = x + row * channels;
        T* result = out + row * channels;
        if (bias) {
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c)
            store(result[c], (in[c] - middle) * factor[c] + bias[c]);
        } else {
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) store(result[c], (in[c] - middle) * factor[c]);
        }
      }
    });
  });
}

// Adds to `totals` (samples, 2, channels) the sums of grad and of grad * (x - mean) over rows.
template <class T>
void norm_sums(const T* grad, const float* x, const float* mean, double* totals, int64_t first,
               int64_t count, int64_t area, int64_t channels, int64_t threads) {
  by_sample(first, first + count, area, [&](int64_t sample, int64_t from, int64_t to) {
    const float middle = mean[sample];
    double* into = totals + sample * 2 * channels;
    sum_rows(to - from, 2 * channels, threads, into, [&](int64_t row, float* sums) {
      const T* g = grad + (from + row) * channels;
      const float* in = x + (from + row) * channels;
      float* products = sums + channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) {
        const float value = load(g[c]);
        sums[c] += value;
        products[c] += value * (in[c] - middle);
      }
    });
  });
}

// shortcut + rstd * weight * grad - shift - slant * (x - mean): the gradient of a norm's input.
template <class T>
void norm_gradient(const float* shortcut, const T* grad, const float* x, const float* mean,
                   const float* rstd, const float* weight, const float* shift, const float* slant,
                   float* out, int64_t first, int64_t count, int64_t area, int64_t channels,
                   int64_t threads) {
  parallel(count, channels, threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> gain(channels);
    by_sample(first + begin, first + end, area, [&](int64_t sample, int64_t from, int64_t to) {
      const float middle = mean[sample], less = shift[sample], tilt = slant[sample];
      for (int64_t c = 0; c < channels; ++c) gain[c] = rstd[sample] * weight[c];
      const float* factor = gain.data();
      for (int64_t row = begin + from; row < begin + to; ++row) {
        const int64_t at = row * channels;
        const float* in = x + at;
        const T* g = grad + at;
        float* result = out + at;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c)
          result[c] = factor[c] * load(g[c]) - less - tilt * (in[c] - middle);
        if (shortcut) {
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c) result[c] += shortcut[at + c];
        }
      }
    });
  });
}

// GELU(hidden + bias) in place; what hidden was goes to `kept` unless that is null.
template <class T>
void gelu(T* hidden, const float* bias, T* kept, int64_t count, int64_t channels, int64_t threads) {
  parallel(count, 4 * channels, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      T* values = hidden + row * channels;
      if (kept) std::memcpy(kept + row * channels, values, channels * sizeof(T));
      for (int64_t from = 0; from < channels; from += PIECE) {
        const int64_t length = std::min(PIECE, channels - from);
        float buffer[PIECE];
        T* in = values + from;
        float* out = place(in, buffer);
#pragma omp simd
        for (int64_t c = 0; c < length; ++c) {
          const float v = load(in[c]) + bias[from + c];
          out[c] = v * cdf(v, T());
        }
        finish(in, out, length);
      }
    }
  });
}

// From `grad` of GELU(hidden + bias) makes that of hidden, in place; `activated` is GELU again, and
// the gradient of bias is added to `totals` (channels,).
template <class T>
void gelu_gradient(const T* hidden, const float* bias, T* grad, T* activated, double* totals,
                   int64_t count, int64_t channels, int64_t threads) {
  sum_rows(count, channels, threads, totals, [&](int64_t row, float* sums) {
    for (int64_t from = 0; from < channels; from += PIECE) {
      const int64_t length = std::min(PIECE, channels - from), at = row * channels + from;
      float buffers[2][PIECE];
      float* g = place(grad + at, buffers[0]);
      float* a = place(activated + at, buffers[1]);
      float* total = sums + from;
#pragma omp simd
      for (int64_t c = 0; c < length; ++c) {
        const float v = load(hidden[at + c]) + bias[from + c];
        a[c] = v * cdf(v, T());
        const float product = load(grad[at + c]) * slope(v, T());
        total[c] += product;
        g[c] = product;
      }
      finish(grad + at, g, length);
      finish(activated + at, a, length);
    }
  });
}

// x + (branch + bias) * scale * drop, of `count` rows; drop is of samples, or null.
template <class T>
void add_branch(const float* x, const T* branch, const float* bias, const float* scale,
                const float* drop, float* out, int64_t first, int64_t count, int64_t area,
                int64_t channels, int64_t threads) {
  parallel(count, channels, threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> gain(channels);
    by_sample(first + begin, first + end, area, [&](int64_t sample, int64_t from, int64_t to) {
      for (int64_t c = 0; c < channels; ++c) gain[c] = drop ? scale[c] * drop[sample] : scale[c];
      const float* factor = gain.data();
      for (int64_t row = begin + from; row < begin + to; ++row) {
        const int64_t at = row * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c)
          out[at + c] = x[at + c] + (load(branch[at + c]) + bias[c]) * factor[c];
      }
    });
  });
}

// out = grad * drop, and its sums over rows are added to `totals` (channels,). Either may be null.
template <class T>
void scale_gradient(const float* grad, const float* drop, T* out, double* totals, int64_t first,
                    int64_t count, int64_t area, int64_t channels, int64_t threads) {
  by_sample(first, first + count, area, [&](int64_t sample, int64_t from, int64_t to) {
    const float factor = drop ? drop[sample] : 1.0f;
    sum_rows(to - from, channels, threads, totals, [&](int64_t row, float* sums) {
      const float* g = grad + (from + row) * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) sums[c] += g[c] * factor;
      if (!out) return;
      T* result = out + (from + row) * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) store(result[c], g[c] * factor);
    });
  });
}

// How many of y-1, y, y+1 are in 0..size.
inline int neighbours(int64_t y, int64_t size) { return 1 + (y > 0) + (y + 1 < size); }

// Sums over the column of 3 pixels around each pixel of row y, into columns 1..width of `sums`,
// whose columns 0 and width + 1 stay as they are.
inline void sum_columns(const float* map, int64_t y, int64_t height, int64_t length, float* sums) {
  const float* middle = map + y * length;
  const float* above = y > 0 ? middle - length : nullptr;
  const float* below = y + 1 < height ? middle + length : nullptr;
  if (above && below) {
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) sums[i] = above[i] + middle[i] + below[i];
  } else if (above || below) {
    const float* other = above ? above : below;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) sums[i] = middle[i] + other[i];
  } else {
    std::copy(middle, middle + length, sums);
  }
}

// The adjoint of average pooling, less its input, of row y: `result` (width, channels).
void adjoint_row(const float* grad, int64_t y, int64_t height, int64_t width, int64_t channels,
                 float* sums, float* result) {
  const int64_t length = width * channels;
  // Pixels divide by the number of their neighbours before they are summed.
  float* inner = sums + channels;
  std::fill(inner, inner + length, 0.0f);
  for (int64_t near = std::max<int64_t>(0, y - 1); near < std::min(height, y + 2); ++near) {
    const float* row = grad + near * length;
    const int rows = neighbours(near, height);
    for (int64_t x = 0; x < width; ++x) {
      const float share = 1.0f / float(rows * neighbours(x, width));
#pragma omp simd
      for (int64_t i = x * channels; i < (x + 1) * channels; ++i) inner[i] += row[i] * share;
    }
  }
  const float* own = grad + y * length;
#pragma omp simd
  for (int64_t i = 0; i < length; ++i)
    result[i] = sums[i] + inner[i] + inner[i + channels] - own[i];
}

// Mean and 1/sqrt(variance + eps) of each sample of `size` elements, from pieces that stay in the
// cache, put together by Chan et al. (1983).
template <class T>
void moments(const T* x, int64_t samples, int64_t size, double eps, float* mean, float* rstd,
             int64_t threads) {
  constexpr int64_t MOST = 4096;
  const int64_t pieces = (size + MOST - 1) / MOST;
  std::vector<double> means(samples * pieces), squares(samples * pieces);
  parallel(samples * pieces, MOST, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t start = piece % pieces * MOST, count = std::min(MOST, size - start);
      const float* values = x + piece / pieces * size + start;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < count; ++i) sum += values[i];
      const float middle = sum / float(count);
      float rest = 0, square = 0;
#pragma omp simd reduction(+ : rest, square)
      for (int64_t i = 0; i < count; ++i) {
        const float difference = values[i] - middle;
        rest += difference;
        square += difference * difference;
      }
      means[piece] = double(middle) + double(rest) / count;
      squares[piece] = double(square) - double(rest) * rest / count;
    }
  });
  for (int64_t sample = 0; sample < samples; ++sample) {
    double total = 0, square = 0;
    for (int64_t i = 0; i < pieces; ++i)
      total += means[sample * pieces + i] * std::min(MOST, size - i * MOST);
    const double middle = total / size;
    for (int64_t i = 0; i < pieces; ++i) {
      const double difference = means[sample * pieces + i] - middle;
      square += squares[sample * pieces + i];
      square += difference * difference * std::min(MOST, size - i * MOST);
    }
    mean[sample] = float(middle);
    rstd[sample] = float(1 / std::sqrt(square / size + eps));
  }
}

// x + k * (P(x) - x), k (samples, channels).
template <class T>
void pool_mix(const T* x, const float* k, float* out, int64_t samples, int64_t height,
              int64_t width, int64_t channels, int64_t threads) {
  const int64_t length = width * channels;
  parallel(samples * height, 4 * length, threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> sums(length + 2 * channels, 0.0f);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t sample = row / height, y = row % height;
      const float* map = x + sample * height * length;
      const float* gain = k + sample * channels;
      sum_columns(map, y, height, length, sums.data() + channels);
      for (int64_t column = 0; column < width; ++column) {
        const float number = float(neighbours(y, height) * neighbours(column, width));
        const float share = 1 / number;
        const float* three = sums.data() + column * channels;
        const float* in = x + row * length + column * channels;
        float* result = out + row * length + column * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) {
          const float sum = three[c] + three[c + channels] + three[c + 2 * channels];
          result[c] = in[c] + gain[c] * share * (sum - number * in[c]);
        }
      }
    }
  });
}

// Adds the gradient of k to `totals` (samples, channels).
template <class T>
void pool_mix_sums(const T* grad, const float* x, const float* mean, double* totals,
                   int64_t samples, int64_t height, int64_t width, int64_t channels,
                   int64_t threads) {
  const int64_t length = width * channels, area = height * length;
  for (int64_t sample = 0; sample < samples; ++sample) {
    std::vector<double> wide(threads * channels, 0.0);
    parallel(height, 4 * length, threads, [&](int64_t begin, int64_t end, int worker) {
      std::vector<float> sums(length + 2 * channels, 0.0f), adjoint(length), row(channels);
      for (int64_t y = begin; y < end; ++y) {
        adjoint_row(grad + sample * area, y, height, width, channels, sums.data(), adjoint.data());
        std::fill(row.begin(), row.end(), 0.0f);
        const float* in = x + sample * area + y * length;
        float* into = row.data();
        for (int64_t column = 0; column < width; ++column) {
          const float* q = adjoint.data() + column * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; ++c)
            into[c] += q[c] * (in[column * channels + c] - mean[sample]);
        }
        for (int64_t c = 0; c < channels; ++c) wide[worker * channels + c] += row[c];
      }
    });
    for (int worker = 0; worker < threads; ++worker)
      for (int64_t c = 0; c < channels; ++c)
        totals[sample * channels + c] += wide[worker * channels + c];
  }
}

// The gradient of x: grad + k * (P^T(grad) - grad) + slant * (x - mean).
template <class T>
void pool_mix_gradient(const T* grad, const float* x, const float* mean, const float* k,
                       const float* slant, float* out, int64_t samples, int64_t height,
                       int64_t width, int64_t channels, int64_t threads) {
  const int64_t length = width * channels;
  parallel(samples * height, 4 * length, threads, [&](int64_t begin, int64_t end, int) {
    std::vector<float> sums(length + 2 * channels, 0.0f), adjoint(length);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t sample = row / height;
      adjoint_row(grad + sample * height * length, row % height, height, width, channels,
                  sums.data(), adjoint.data());
      const float middle = mean[sample], tilt = slant[sample];
      const float* gain = k + sample * channels;
      for (int64_t column = 0; column < width; ++column) {
        const int64_t at = row * length + column * channels;
        const float* q = adjoint.data() + column * channels;
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c)
          out[at + c] = grad[at + c] + gain[c] * q[c] + tilt * (x[at + c] - middle);
      }
    }
  });
}

}  // namespace

using Function = void (*)();

// Names without C++'s decoration, for whatever T.
#define EXPORT(NAME, T) extern const Function NAME##_##T = reinterpret_cast<Function>(NAME<T>)
#define EXPORT_BOTH(NAME) \
  EXPORT(NAME, float);    \
  EXPORT(NAME, bfloat16)

extern "C" {
EXPORT_BOTH(normalize);
EXPORT_BOTH(norm_sums);
EXPORT_BOTH(norm_gradient);
EXPORT_BOTH(gelu);
EXPORT_BOTH(gelu_gradient);
EXPORT_BOTH(add_branch);
EXPORT_BOTH(scale_gradient);
EXPORT(moments, float);
EXPORT(pool_mix, float);
EXPORT(pool_mix_sums, float);
EXPORT(pool_mix_gradient, float);
}
