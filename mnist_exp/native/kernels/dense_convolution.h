// Convolution that keeps all pixels of its maps, for batch norm and average pooling. Maps as in convolution.h.

// The maps of one image (or two) before pooling, LANES channels from `first`: to [OUT][OUT][CO].
INLINE void convolve_all(const float *x, long stride, const float *weight, const float *bias, float *to, float *other,
                         const int C, const int CO, const int first, const int LANES, const int OUT, const int IMAGES,
                         const int T) {
  for (long py = 0; py < OUT; py += 2)
    for (long px = 0; px < OUT; px += T) {
      const long row = MIN(py, OUT - 2), column = MIN(px, OUT - T);
      vec sum[2][16];
      convolve(x + (row * stride + column * C) * IMAGES, stride, weight, bias, C, IMAGES, T, sum);
#pragma GCC unroll 2
      for (int r = 0; r < 2; r++)
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
          const long at = ((row + r) * OUT + column + t) * CO + first;
          if (IMAGES == 1) memcpy(to + at, &sum[r][t], LANES * sizeof(float));
          else {
            const vec separated = unzip(sum[r][t]);
            memcpy(to + at, &separated, LANES * sizeof(float));
            memcpy(other + at, (const half *)&separated + 1, LANES * sizeof(float));
          }
        }
    }
}

// Pooling of one image's maps, value [OUT][OUT][C] -> y [POOLED][POOLED][C]; winner [POOLED][POOLED][C]: index of the maximum in value.
INLINE void pool_all(const float *value, float *y, int32_t *winner, const int C, const int OUT, const int POOLED) {
  for (long p = 0; p < POOLED * POOLED; p++) {
    const long at = (p / POOLED * 2 * OUT + p % POOLED * 2) * C;
    for (long c = 0; c < C; c += V) {
      const float *a = value + at + c;
      vec q, best = load(a);
#if AVERAGE
      (void)winner, (void)q;
      best = 0.25f * (best + load(a + C) + load(a + OUT * C) + load(a + OUT * C + C));
#else
      ivec where = (ivec){0} + (int)at;
      q = load(a + C); TAKE((q > best) | (q != q), at + C)
      q = load(a + OUT * C); TAKE((q > best) | (q != q), at + OUT * C)
      q = load(a + OUT * C + C); TAKE((q > best) | (q != q), at + OUT * C + C)
      *(ivec *)(winner + p * C + c) = where;
#endif
      store(y + p * C + c, best);
    }
  }
}
// The gradient of `value` from the gradient of y.
INLINE void unpool_all(const float *y, float *value, const int32_t *where, const int C, const int OUT, const int POOLED) {
  memset(value, 0, (OUT * OUT * C + V) * sizeof(float));
  for (long p = 0; p < POOLED * POOLED; p++) {
    const long at = (p / POOLED * 2 * OUT + p % POOLED * 2) * C;
    for (long c = 0; c < C; c++) {
      const float g = y[p * C + c];
#if AVERAGE
      (void)where;
      value[at + c] = value[at + C + c] = value[at + OUT * C + c] = value[at + OUT * C + C + c] = 0.25f * g;
#else
      (void)at;
      value[where[p * C + c] + c] = g;
#endif
    }
  }
}

// CHANNELS kernels from `first`: weight_gradient [CO][KERNEL][TAP_ROW(C)] += the sum of g x over all pixels of one image.
INLINE void backward_weights_all(const float *x, long stride, const float *gradient, float *weight_gradient, const int C,
                                 const int CO, const int first, const int CHANNELS, const int OUT) {
  const int W = TAP_VECTORS(C);
  for (int ky = 0; ky < KERNEL; ky++) {
    vec sum[CHANNELS][W];
    float *to = weight_gradient + (first * KERNEL + ky) * TAP_ROW(C);
#pragma GCC unroll 8
    for (int c = 0; c < CHANNELS; c++)
#pragma GCC unroll 8
      for (int w = 0; w < W; w++) sum[c][w] = load(to + c * KERNEL * TAP_ROW(C) + w * V);
    for (long row = 0; row < OUT; row++) {
      const float *from = x + (row + ky) * stride, *g = gradient + row * OUT * CO + first;
      for (long column = 0; column < OUT; column++, from += C, g += CO)
#pragma GCC unroll 8
        for (int w = 0; w < W; w++) {
          const vec value = load(from + w * V);
#pragma GCC unroll 8
          for (int c = 0; c < CHANNELS; c++) sum[c][w] += g[c] * value;
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < CHANNELS; c++)
#pragma GCC unroll 8
      for (int w = 0; w < W; w++) store(to + c * KERNEL * TAP_ROW(C) + w * V, sum[c][w]);
  }
}
INLINE void backward_kernels_all(const float *x, long stride, const float *gradient, float *weight_gradient, const int C,
                                 const int CO, const int OUT) {
  const int most = MIN((V == 16 ? 24 : 12) / TAP_VECTORS(C), 8), CHANNELS = most < 1 ? 1 : MIN(most, CO);
  for (int first = 0; first < CO; first += CHANNELS) {
    if (first + CHANNELS <= CO) backward_weights_all(x, stride, gradient, weight_gradient, C, CO, first, CHANNELS, OUT);
    else backward_weights_all(x, stride, gradient, weight_gradient, C, CO, first, CO % CHANNELS, OUT);
  }
}

// input_gradient += the sum over output channels of g w, for T columns of output pixels at a time.
INLINE void backward_inputs_all(float *input_gradient, long stride, const float *gradient, const float *weight, const int C,
                                const int CO, const int OUT, const int T) {
  const int W = TAP_VECTORS(C);
  for (long row = 0; row < OUT; row++)
    for (int ky = 0; ky < KERNEL; ky++)
      for (long column = 0; column < OUT; column += T) {
        const int count = MIN(T, OUT - column);
        for (int w = 0; w < W; w++) {
          vec sum[T];
          for (int t = 0; t < T; t++) sum[t] = (vec){0};
          const float *g = gradient + (row * OUT + column) * CO, *kernel = weight + ky * TAP_ROW(C) + w * V;
          if (count == T)
            for (int co = 0; co < CO; co++) {
              const vec k = load(kernel + co * KERNEL * TAP_ROW(C));
#pragma GCC unroll 16
              for (int t = 0; t < T; t++) sum[t] += g[t * CO + co] * k;
            }
          else
            for (int co = 0; co < CO; co++)
              for (int t = 0; t < count; t++) sum[t] += g[t * CO + co] * load(kernel + co * KERNEL * TAP_ROW(C));
          float *to = input_gradient + (row + ky) * stride + column * C + w * V;
          for (int t = 0; t < count; t++, to += C) store(to, load(to) + sum[t]);
        }
      }
}
