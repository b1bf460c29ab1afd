// Convolution, 2x2 max pooling and activation as one kernel, and its backward pass, which visits only the maximum of each
// pool: a quarter of the arithmetic of a dense one.
//
// Maps are stored as [row][column][channel] without gaps, so that the KERNEL * C floats under one row of a kernel ("taps") are
// contiguous, and the sum under a kernel has KERNEL runs of TAPS(C) products.
#define TAPS(C) (KERNEL * (C))
#define TAP_VECTORS(C) ((TAPS(C) + V - 1) / V)

// sum[r][t] = bias + the sum under the kernel for two output rows and T output columns, V lanes of output channels.
//   x       the element under the kernel's first tap for r = t = 0; rows of x are `stride` elements apart. An element is a
//           float, or with IMAGES = 2 the same pixel of two images, whose results alternate in the lanes: channel 0 of the
//           first, channel 0 of the second, channel 1 of the first, ...
//   weight  [KERNEL][TAPS(C)][V], bias [V]
INLINE void convolve(const float *x, long stride, const float *weight, const float *bias, const int C, const int IMAGES,
                     const int T, vec sum[2][16]) {
#pragma GCC unroll 16
  for (int t = 0; t < T; t++) sum[0][t] = sum[1][t] = load(bias);
  for (int ky = 0; ky < KERNEL; ky++) {
    const float *top = x + ky * stride * IMAGES, *bottom = top + stride * IMAGES;
    for (int k = 0; k < TAPS(C); k++, weight += V) {
      const vec w = load(weight);
#pragma GCC unroll 16
      for (int t = 0; t < T; t++) {
        const int at = t * C + k;
        if (IMAGES == 1) {
          sum[0][t] += top[at] * w;
          sum[1][t] += bottom[at] * w;
        } else {
          sum[0][t] += splat_pair(((const pair *)top)[at]) * w;
          sum[1][t] += splat_pair(((const pair *)bottom)[at]) * w;
        }
      }
    }
  }
}

// The maximum of each 2x2 pool, the first of equals, after the activation: y, the derivative, and the index of the pixel.
// `at` is the index of the pool's first pixel, `right` and `down` the offsets to its neighbours.
typedef struct {
  vec y, slope;
  ivec where;
} Pooled;

#define TAKE(IF, place)                                            \
  {                                                                \
    ivec taken = IF;                                               \
    best = choose(taken, q, best);                                 \
    where = (taken & ((ivec){0} + (int)(place))) | (~taken & where); \
  }
INLINE Pooled pool(vec a, vec b, vec c, vec d, long at, long right, long down) {
  vec q, best = a;
  ivec where = (ivec){0} + (int)at;
  q = b; TAKE((q > best) | (q != q), at + right)
  q = c; TAKE((q > best) | (q != q), at + down)
  q = d; TAKE((q > best) | (q != q), at + down + right)
  Pooled high;
  high.y = activation(best, &high.slope);
  high.where = where;
#if ACTIVATION == GELU || ACTIVATION == SILU
  // These functions first decrease, then increase: the maximum is at the largest or at the smallest input.
  best = a, where = (ivec){0} + (int)at;
  q = b; TAKE(q < best, at + right)
  q = c; TAKE(q < best, at + down)
  q = d; TAKE(q < best, at + down + right)
  Pooled low;
  low.y = activation(best, &low.slope);
  ivec lower = low.y > high.y;
  high.y = choose(lower, low.y, high.y);
  high.slope = choose(lower, low.slope, high.slope);
  high.where = (lower & where) | (~lower & high.where);
#endif
  return high;
}

// Pooled maps of one image: y and slope [SIDE][SIDE][CO] floats, where indices in x. Each has V more floats at the end.
typedef struct {
  float *y, *slope;
  int32_t *where;
} Maps;

INLINE Maps maps_of(Maps m, long offset) {
  return (Maps){m.y + offset, m.slope ? m.slope + offset : 0, m.where + offset};
}

// Store V lanes of channels; lanes after the last channel are overwritten by the next pixel, or are the space at the end.
INLINE void put(float *to, vec a, const int LANES) {
  if (LANES == V) store(to, a);
  else memcpy(to, &a, LANES * sizeof(float));
}
INLINE void put_pooled(Maps to, long at, Pooled p, const int LANES) {
  put(to.y + at, p.y, LANES);
  put((float *)to.where + at, (vec)p.where, LANES);
  if (ACTIVATION != RELU) put(to.slope + at, p.slope, LANES);
}
INLINE void put_pooled_pair(Maps one, Maps other, long at, Pooled p) {
  vec y = unzip(p.y), where = unzip((vec)p.where), slope = unzip(p.slope);
  *(half *)(one.y + at) = ((half *)&y)[0], *(half *)(other.y + at) = ((half *)&y)[1];
  *(half *)(one.where + at) = ((half *)&where)[0], *(half *)(other.where + at) = ((half *)&where)[1];
  if (ACTIVATION != RELU)
    *(half *)(one.slope + at) = ((half *)&slope)[0], *(half *)(other.slope + at) = ((half *)&slope)[1];
}

// One image (or two, in `to` and `other`) through convolution, activation and pooling, for LANES channels from `first`.
// T output columns at a time; the last tile overlaps the one before it.
INLINE void convolve_pool(const float *x, long stride, const float *weight, const float *bias, Maps to, Maps other,
                          const int C, const int CO, const int first, const int LANES, const int POOLED,
                          const int IMAGES, const int T) {
  for (long py = 0; py < POOLED; py++)
    for (long px = 0; px < POOLED; px += T / 2) {
      const long column = px < POOLED - T / 2 ? px : POOLED - T / 2;
      const long at = 2 * py * stride + 2 * column * C;
      vec sum[2][16];
      convolve(x + at * IMAGES, stride, weight, bias, C, IMAGES, T, sum);
#pragma GCC unroll 8
      for (int t = 0; t < T; t += 2) {
        Pooled p = pool(sum[0][t], sum[0][t + 1], sum[1][t], sum[1][t + 1], at + t * C, C, stride);
        const long place = (py * POOLED + column + t / 2) * CO + first;
        if (IMAGES == 1) put_pooled(to, place, p, LANES);
        else put_pooled_pair(to, other, place, p);
      }
    }
}

// Columns in a tile: an even number, small enough that the sums fit into registers, and with at least 8 independent sums, so
// that no sum waits for the last product. Of these the one with the least work; the last tile computes some columns again.
#define MAX_COLUMNS (V == 16 ? 12 : 6)
#define WORK(T, W) ((T) > (W) || (T) > MAX_COLUMNS ? 1 << 20 : ((W) + (T) - 1) / (T) * ((T) < 4 ? 8 : 2 * (T)) * 16 + 15 - (T))
#define MIN_WORK(W) MIN(MIN(MIN(WORK(2, W), WORK(4, W)), MIN(WORK(6, W), WORK(8, W))), MIN(WORK(10, W), WORK(12, W)))
#define TILE(POOLED) (15 - MIN_WORK(2 * (POOLED)) % 16)

// The channels of one vector for one image.
INLINE void convolve_pool_block(const float *x, long stride, const float *weight, const float *bias, Maps to, const int C,
                                const int CO, const int first, const int POOLED) {
  if (first + V <= CO || CO < V)
    convolve_pool(x, stride, weight, bias, to, to, C, CO, first, V, POOLED, 1, TILE(POOLED));
  else
    convolve_pool(x, stride, weight, bias, to, to, C, CO, first, CO % V ? CO % V : V, POOLED, 1, TILE(POOLED));
}

// weight [CO][C][KERNEL][KERNEL] with the strides of its four axes -> packed [blocks][KERNEL][TAPS(C)][V] and bias
// [blocks][V], zero if there is no channel. With IMAGES = 2 every channel occurs twice.
static void pack_forward(const float *weight, const int64_t *strides, const float *bias, float *packed, float *packed_bias,
                         int CO, int C, int IMAGES) {
  const int lanes = V / IMAGES;
  for (int first = 0; first < CO; first += lanes)
    for (int lane = 0; lane < V; lane++) {
      const int co = first + lane / IMAGES;
      *packed_bias++ = co < CO ? bias[co] : 0;
    }
  for (int first = 0; first < CO; first += lanes)
    for (int ky = 0; ky < KERNEL; ky++)
      for (int kx = 0; kx < KERNEL; kx++)
        for (int c = 0; c < C; c++)
          for (int lane = 0; lane < V; lane++) {
            const int co = first + lane / IMAGES;
            *packed++ = co < CO ? weight[co * strides[0] + c * strides[1] + ky * strides[2] + kx * strides[3]] : 0;
          }
}

// The same for the backward pass: [CO][KERNEL][TAP_ROW(C)], zero after the last tap. `unpack_gradient` is the inverse, for a
// gradient with rows of `row` floats.
#define TAP_ROW(C) (TAP_VECTORS(C) * V)
static void pack_backward(const float *weight, const int64_t *strides, float *packed, int CO, int C) {
  for (int co = 0; co < CO; co++)
    for (int ky = 0; ky < KERNEL; ky++, packed += TAP_ROW(C))
      for (int t = 0; t < TAP_ROW(C); t++)
        packed[t] = t < TAPS(C) ? weight[co * strides[0] + t % C * strides[1] + ky * strides[2] + t / C * strides[3]] : 0;
}
static void unpack_gradient(const float *packed, int row, float *gradient, const int64_t *strides, int CO, int C) {
  for (int co = 0; co < CO; co++)
    for (int ky = 0; ky < KERNEL; ky++, packed += row)
      for (int t = 0; t < TAPS(C); t++)
        gradient[co * strides[0] + t % C * strides[1] + ky * strides[2] + t / C * strides[3]] = packed[t];
}

// Backward pass of the activation for one image: gradient [PIXELS][CO] times the slope, in place; its sums are added to
// bias_gradient [CO].
INLINE void backward_pool(float *gradient, Maps maps, float *bias_gradient, const int CO, const int PIXELS) {
  for (long i = 0; i < PIXELS * CO; i += V) {
    vec g = load(gradient + i);
    if (ACTIVATION == RELU) g = choose(load(maps.y + i) <= 0, splat(0), g);
    else g *= load(maps.slope + i);
    store(gradient + i, g);
  }
  for (long first = 0; first < CO; first += V) {
    vec sum = load(bias_gradient + first);
    for (long p = 0; p < PIXELS; p++) sum += load(gradient + p * CO + first);
    put(bias_gradient + first, sum, V); // lanes after the last channel are not read
  }
}

// The maxima of one channel in up to GROUP images, gradient and index, without those of gradient 0. Neighbours in the list
// belong to different images, so that their additions to input_gradient do not wait for each other.
#define GROUP 4
INLINE long winners(const float *gradient, const int32_t *where, long image, long input, long count, float *g, int32_t *place,
                    const int CO, const int PIXELS) {
  long n = 0;
  for (long p = 0; p < PIXELS; p++)
    for (long i = 0; i < count; i++) {
      const long at = i * image + p * CO;
      g[n] = gradient[at];
      place[n] = where[at] + i * input;
      n += gradient[at] != 0;
    }
  return n;
}

// ROWS rows of a kernel: weight_gradient += the sum of g x over n maxima.
INLINE void backward_weight(const float *x, long stride, float *weight_gradient, const float *g, const int32_t *place,
                            long n, const int C, const int ROWS) {
  const int W = TAP_VECTORS(C);
  vec sum[ROWS][W];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) sum[r][w] = load(weight_gradient + (r * W + w) * V);
  for (long i = 0; i < n; i++)
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int w = 0; w < W; w++) sum[r][w] += g[i] * load(x + place[i] + r * stride + w * V);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) store(weight_gradient + (r * W + w) * V, sum[r][w]);
}

// ROWS rows of a kernel: input_gradient += g weight at each of n maxima.
INLINE void backward_input(float *input_gradient, long stride, const float *weight, const float *g, const int32_t *place,
                           long n, const int C, const int ROWS) {
  const int W = TAP_VECTORS(C);
  vec kernel[ROWS][W];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) kernel[r][w] = load(weight + (r * W + w) * V);
  for (long i = 0; i < n; i++)
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int w = 0; w < W; w++) {
        float *to = input_gradient + place[i] + r * stride + w * V;
        store(to, load(to) + g[i] * kernel[r][w]);
      }
}

// All kernels for `count` <= GROUP images; input_gradient may be NULL. As many rows of kernels are computed together as
// fit into registers.
INLINE void backward_rows(const float *x, float *input_gradient, long stride, const float *weight, float *weight_gradient,
                          const float *g, const int32_t *place, long n, const int C, const int ROWS) {
  backward_weight(x, stride, weight_gradient, g, place, n, C, ROWS);
  if (input_gradient) backward_input(input_gradient, stride, weight, g, place, n, C, ROWS);
}
INLINE void convolve_backward(const float *x, float *input_gradient, long stride, long input, const float *weight,
                              float *weight_gradient, const float *gradient, const int32_t *where, long image, long count,
                              const int C, const int CO, const int PIXELS) {
  const int FIT = (V == 16 ? 12 : 8) / TAP_VECTORS(C), ROWS = FIT < 1 ? 1 : FIT < KERNEL ? FIT : KERNEL;
  float g[GROUP * PIXELS + 1];
  int32_t place[GROUP * PIXELS + 1];
  for (int co = 0; co < CO; co++) {
    const long n = winners(gradient + co, where + co, image, input, count, g, place, CO, PIXELS);
    const float *w = weight + (long)co * KERNEL * TAP_ROW(C);
    float *to = weight_gradient + (long)co * KERNEL * TAP_ROW(C);
    for (int ky = 0; ky < KERNEL; ky += ROWS) {
      const float *from = x + ky * stride;
      float *back = input_gradient ? input_gradient + ky * stride : 0;
      if (ky + ROWS <= KERNEL)
        backward_rows(from, back, stride, w + ky * TAP_ROW(C), to + ky * TAP_ROW(C), g, place, n, C, ROWS);
      else
        backward_rows(from, back, stride, w + ky * TAP_ROW(C), to + ky * TAP_ROW(C), g, place, n, C, KERNEL % ROWS);
    }
  }
}

// The same for inputs of one channel that need no gradient, for which lists would be slower: weight gradients of MAPS channels
// from `first` stay in registers for the whole image, 8 taps of a kernel's row in a vector.
#define ROW8 ((KERNEL + 7) / 8)
INLINE void backward_images(const float *x, long stride, float *weight_gradient, const float *gradient,
                            const int32_t *where, const int CO, const int first, const int MAPS, const int PIXELS) {
  v8 sum[MAPS][KERNEL][ROW8];
  float *to = weight_gradient + (long)first * KERNEL * ROW8 * 8;
#pragma GCC unroll 8
  for (int m = 0; m < MAPS; m++)
#pragma GCC unroll 16
    for (int ky = 0; ky < KERNEL; ky++)
#pragma GCC unroll 2
      for (int w = 0; w < ROW8; w++) sum[m][ky][w] = *(v8 *)(to + ((m * KERNEL + ky) * ROW8 + w) * 8);
  for (long p = 0; p < PIXELS; p++)
#pragma GCC unroll 8
    for (int m = 0; m < MAPS; m++) {
      const float g = gradient[p * CO + first + m];
      const float *from = x + where[p * CO + first + m];
#pragma GCC unroll 16
      for (int ky = 0; ky < KERNEL; ky++)
#pragma GCC unroll 2
        for (int w = 0; w < ROW8; w++) sum[m][ky][w] += g * *(const v8 *)(from + ky * stride + w * 8);
    }
#pragma GCC unroll 8
  for (int m = 0; m < MAPS; m++)
#pragma GCC unroll 16
    for (int ky = 0; ky < KERNEL; ky++)
#pragma GCC unroll 2
      for (int w = 0; w < ROW8; w++) *(v8 *)(to + ((m * KERNEL + ky) * ROW8 + w) * 8) = sum[m][ky][w];
}
