// Batch normalisation (Ioffe and Szegedy 2015): u = gamma h + beta with h = (z - mean) / sqrt(variance + eps), a mean and a
// variance for each channel, or for each feature of a linear layer, over all images (and pixels) of the batch.
//
// Backward, with g the gradient of u: beta' = sum g, gamma' = sum g h, z' = gamma / std (g - mean of g - h mean of g h).
// Sums are double, a pair for each channel and shard.

// Maps are stored as [pixel][channel], so the channels of the lanes repeat after C vectors. A pattern is C vectors with a value
// for the channel of each lane.
#define PATTERN(C) ((C) * V)
INLINE void make_pattern(float *pattern, const float *values, const int C) {
  for (int i = 0; i < PATTERN(C); i++) pattern[i] = values[i % C];
}
// sums[2 c] += the sum of a over the pixels of channel c, sums[2 c + 1] += that of a b. `count` floats.
static void add_sums(const float *a, const float *b, long count, double *sums, int C) {
  float first[PATTERN(C)], second[PATTERN(C)];
  memset(first, 0, sizeof first), memset(second, 0, sizeof second);
  const long whole = count / V * V;
  for (long i = 0, j = 0; i < whole; i += V, j = j + V == PATTERN(C) ? 0 : j + V) {
    const vec x = load(a + i);
    store(first + j, load(first + j) + x);
    store(second + j, load(second + j) + x * load(b + i));
  }
  for (long i = whole; i < count; i++) first[i % PATTERN(C)] += a[i], second[i % PATTERN(C)] += a[i] * b[i];
  for (int i = 0; i < PATTERN(C); i++) sums[2 * (i % C)] += first[i], sums[2 * (i % C) + 1] += second[i];
}
// to = (from - shift) * scale + offset, by channel. May write up to V floats after `count`.
static void scale_channels(float *to, const float *from, long count, const float *shift, const float *scale,
                           const float *offset, int C) {
  float s[PATTERN(C)], f[PATTERN(C)], o[PATTERN(C)];
  make_pattern(s, shift, C), make_pattern(f, scale, C), make_pattern(o, offset, C);
  for (long i = 0, j = 0; i < count; i += V, j = j + V == PATTERN(C) ? 0 : j + V)
    store(to + i, (load(from + i) - load(s + j)) * load(f + j) + load(o + j));
}
// gradient = factor (gradient - a - h b), by channel.
static void backward_channels(float *gradient, const float *h, long count, const float *factor, const float *a,
                              const float *b, int C) {
  float f[PATTERN(C)], p[PATTERN(C)], q[PATTERN(C)];
  make_pattern(f, factor, C), make_pattern(p, a, C), make_pattern(q, b, C);
  for (long i = 0, j = 0; i < count; i += V, j = j + V == PATTERN(C) ? 0 : j + V)
    store(gradient + i, load(f + j) * (load(gradient + i) - load(p + j) - load(h + i) * load(q + j)));
}
