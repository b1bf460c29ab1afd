// The two convolutions of a LeNet-5, forward and backward, for one shard.
// Padded copies of the shard's images.
static void pad_images(const Call *call, const Forward *f) {
  memset(f->input, 0, f->n * INPUT1 * sizeof(float));
  for (long i = 0; i < f->n; i++)
    for (long row = 0; row < SIDE; row++)
      memcpy(f->input + i * INPUT1 + (row + PADDING) * SIDE1 + PADDING,
             call->images + example(call, f->first + i) * PIXELS + row * SIDE, SIDE * sizeof(float));
}
static void interleave(const float *one, const float *other, float *pair) {
  for (long k = 0; k < INPUT1; k++) pair[2 * k] = one[k], pair[2 * k + 1] = other[k];
}

#if DENSE
static void activate_all(float *maps, float *slope, long count) {
  for (long i = 0; i < count; i += V) {
    vec s;
    store(maps + i, activation(load(maps + i), &s));
    store(slope + i, s);
  }
}

STAGE begin_first(const Layer *layer, const Forward *f) {
  float *weight = f->kernels, *bias = weight + PACKED1;
  const long size = full_floats(0);
  pack_forward(layer->weight, layer->strides, layer->bias, weight, bias, CHANNELS1, 1, IMAGES1);
  for (long i = 0; i < f->n; i += IMAGES1) {
    const float *x = f->input + i * INPUT1;
    float *to = f->full[0].maps + i * size;
    const long other = IMAGES1 == 2 && i + 1 < f->n ? 1 : 0; // with an odd number, the last image is computed twice
    if (IMAGES1 == 2) {
      interleave(x, x + other * INPUT1, f->pair);
      convolve_all(f->pair, SIDE1, weight, bias, to, to + other * size, 1, CHANNELS1, 0, MIN(CHANNELS1, V / 2), OUT1, 2,
                   TILE(OUT1 / 2));
    } else
      for (int first = 0; first < CHANNELS1; first += V) {
        const float *w = weight + first * KERNEL * TAPS(1);
        if (first + V <= CHANNELS1) convolve_all(x, SIDE1, w, bias + first, to, to, 1, CHANNELS1, first, V, OUT1, 1, TILE(OUT1 / 2));
        else convolve_all(x, SIDE1, w, bias + first, to, to, 1, CHANNELS1, first, CHANNELS1 % V, OUT1, 1, TILE(OUT1 / 2));
      }
  }
}

STAGE begin_second(const Layer *layer, const Forward *f) {
  float *weight = f->kernels, *bias = weight + PACKED2;
  pack_forward(layer->weight, layer->strides, layer->bias, weight, bias, CHANNELS2, CHANNELS1, 1);
  for (long i = 0; i < f->n; i++)
    for (int first = 0; first < CHANNELS2; first += V) {
      const float *x = f->maps[0].y + i * OUTPUT1, *w = weight + first * KERNEL * TAPS(CHANNELS1);
      float *to = f->full[1].maps + i * full_floats(1);
      if (first + V <= CHANNELS2)
        convolve_all(x, POOLED1 * CHANNELS1, w, bias + first, to, to, CHANNELS1, CHANNELS2, first, V, OUT2, 1, TILE(OUT2 / 2));
      else
        convolve_all(x, POOLED1 * CHANNELS1, w, bias + first, to, to, CHANNELS1, CHANNELS2, first, CHANNELS2 % V, OUT2, 1,
                     TILE(OUT2 / 2));
    }
}

// The maps of convolution c, and for batch norm their sums.
static void begin_convolution(const Layer *layer, const Forward *f, long c) {
  if (c) begin_second(layer, f);
  else begin_first(layer, f);
  const long size = full_floats(c), count = size - V;
  for (long i = 0; i < f->n && layer->norm; i++) {
    float *maps = f->full[c].maps + i * size;
    memset(maps + count, 0, V * sizeof(float));
    if (layer->norm == AFTER) activate_all(maps, f->full[c].slope + i * size, count);
    add_sums(maps, maps, count, f->sums[c], CHANNELS[c]);
  }
}

// Batch norm, activation, pooling.
INLINE void finish_convolution(const Call *call, const Layer *layer, const Forward *f, const int c, const int C, const int O,
                               const int P) {
  const long size = full_floats(c), count = size - V;
  const float *mean = statistics(call, c, 0);
  float zero[C];
  memset(zero, 0, sizeof zero);
  for (long i = 0; i < f->n; i++) {
    float *maps = f->full[c].maps + i * size, *slope = f->full[c].slope + i * size;
    float *y = f->maps[c].y + i * OUTPUT[c];
    if (layer->norm) {
      scale_channels(maps, maps, count, mean, mean + C, zero, C);
      scale_channels(f->value, maps, count, zero, layer->gamma, layer->beta, C);
    } else
      memcpy(f->value, maps, count * sizeof(float));
    memset(f->value + count, 0, V * sizeof(float));
    if (layer->norm != AFTER) activate_all(f->value, slope, count);
    pool_all(f->value, y, f->maps[c].where + i * OUTPUT[c], C, O, P);
    memset(y + P * P * C, 0, V * sizeof(float)); // read by the backward pass, with weight 0
  }
}
#else
STAGE forward_first(const Layer *layer, const Forward *f) {
  float *weight = f->kernels, *bias = weight + PACKED1;
  pack_forward(layer->weight, layer->strides, layer->bias, weight, bias, CHANNELS1, 1, IMAGES1);
  for (long i = 0; i < f->n; i += IMAGES1) {
    const float *x = f->input + i * INPUT1;
    const Maps to = maps_of(f->maps[0], i * OUTPUT1);
    if (IMAGES1 == 2) {
      const long other = i + 1 < f->n ? 1 : 0; // with an odd number, the last image is computed twice
      interleave(x, x + other * INPUT1, f->pair);
      convolve_pool(f->pair, SIDE1, weight, bias, to, maps_of(to, other * OUTPUT1), 1, CHANNELS1, 0, V, POOLED1, 2,
                    TILE(POOLED1));
    } else
      for (int first = 0; first < CHANNELS1; first += V)
        convolve_pool_block(x, SIDE1, weight + first * KERNEL * TAPS(1), bias + first, to, 1, CHANNELS1, first, POOLED1);
  }
}

STAGE forward_second(const Layer *layer, const Forward *f) {
  float *weight = f->kernels, *bias = weight + PACKED2;
  pack_forward(layer->weight, layer->strides, layer->bias, weight, bias, CHANNELS2, CHANNELS1, 1);
  for (long i = 0; i < f->n; i++) {
    float *maps = f->maps[0].y + i * OUTPUT1;
    memset(maps + OUTPUT1 - V, 0, V * sizeof(float)); // read by the backward pass, with weight 0
    for (int first = 0; first < CHANNELS2; first += V)
      convolve_pool_block(maps, POOLED1 * CHANNELS1, weight + first * KERNEL * TAPS(CHANNELS1), bias + first,
                          maps_of(f->maps[1], i * OUTPUT2), CHANNELS1, CHANNELS2, first, POOLED2);
  }
}
#endif

// From the second pooling to the first linear layer, with features in the order of PyTorch's flatten: channel, row, column.
static void flatten(const Forward *f) {
  for (long p = 0; p < AREA2; p++)
    transpose(f->maps[1].y + p * CHANNELS2, OUTPUT2, f->x[2] + p * f->padded, AREA2 * f->padded, f->n, CHANNELS2);
}
static void unflatten(const Forward *f, const Backward *b) {
  for (long p = 0; p < AREA2; p++)
    transpose(b->gradient + p * f->padded, AREA2 * f->padded, b->maps[1] + p * CHANNELS2, OUTPUT2, CHANNELS2, f->n);
}

static void forward_convolution(const Call *call, const Forward *f, long step) {
  const Layer *layer = &call->layers[step / 2];
  if (step == 0) pad_images(call, f);
#if DENSE
  if (step % 2 == 0) begin_convolution(layer, f, step / 2);
  else if (step == 1) finish_convolution(call, layer, f, 0, CHANNELS1, OUT1, POOLED1);
  else finish_convolution(call, layer, f, 1, CHANNELS2, OUT2, POOLED2);
#else
  if (step == 0) forward_first(layer, f);
  if (step == 2) forward_second(layer, f);
#endif
  if (step == 3) flatten(f);
}

#if DENSE
// From the gradient of pooled maps to the gradient of batch norm's output, and its sums.
INLINE void begin_backward(const Layer *layer, const Forward *f, const Backward *b, const int c, const int C, const int O,
                           const int P) {
  const long size = full_floats(c), count = size - V;
  for (long i = 0; i < f->n; i++) {
    float *g = b->full[c] + i * size;
    unpool_all(b->maps[c] + i * OUTPUT[c], g, f->maps[c].where + i * OUTPUT[c], C, O, P);
    const float *slope = f->full[c].slope + i * size;
    for (long k = 0; layer->norm != AFTER && k < count; k += V) store(g + k, load(g + k) * load(slope + k));
    if (layer->norm) add_sums(g, f->full[c].maps + i * size, count, b->norm_sums[c], C);
  }
}

// From the gradient of batch norm's output to those of the convolution's output, weights and input.
INLINE void finish_backward(const Call *call, const Forward *f, const Backward *b, const int c, const int C, const int O) {
  const Layer *layer = &call->layers[c];
  const long size = full_floats(c), count = size - V;
  const float *scale = statistics(call, c, 0) + C, *means = statistics(call, c, 1);
  float factor[C];
  double sums[2 * C];
  memset(sums, 0, sizeof sums);
  for (int k = 0; k < C && layer->norm; k++) factor[k] = layer->gamma[k] * scale[k];
  if (c == 1) {
    pack_backward(layer->weight, layer->strides, b->kernels, CHANNELS2, CHANNELS1);
    memset(b->maps[0], 0, f->n * OUTPUT1 * sizeof(float));
  }
  for (long i = 0; i < f->n; i++) {
    float *g = b->full[c] + i * size;
    const float *slope = f->full[c].slope + i * size;
    if (layer->norm) backward_channels(g, f->full[c].maps + i * size, count, factor, means, means + C, C);
    for (long k = 0; layer->norm == AFTER && k < count; k += V) store(g + k, load(g + k) * load(slope + k));
    add_sums(g, g, count, sums, C);
    if (c == 0) backward_kernels_all(f->input + i * INPUT1, SIDE1, g, b->sums, 1, CHANNELS1, O);
    else {
      backward_kernels_all(f->maps[0].y + i * OUTPUT1, POOLED1 * CHANNELS1, g, b->sums + KERNELS1, CHANNELS1, CHANNELS2, O);
      backward_inputs_all(b->maps[0] + i * OUTPUT1, POOLED1 * CHANNELS1, g, b->kernels, CHANNELS1, CHANNELS2, O, 5);
    }
  }
  float *bias = b->sums + KERNELS1 + KERNELS2 + (c ? ROUND_UP(CHANNELS1, V) : 0);
  for (int k = 0; k < C; k++) bias[k] += sums[2 * k];
}
#else
// From the gradient of the pooled maps to the gradients of the second convolution's weights and the first pooled maps.
STAGE backward_second(const Layer *layer, const Forward *f, const Backward *b) {
  float *sums = b->sums + KERNELS1, *bias = b->sums + KERNELS1 + KERNELS2 + ROUND_UP(CHANNELS1, V);
  pack_backward(layer->weight, layer->strides, b->kernels, CHANNELS2, CHANNELS1);
  memset(b->maps[0], 0, f->n * OUTPUT1 * sizeof(float));
  for (long i = 0; i < f->n; i++)
    backward_pool(b->maps[1] + i * OUTPUT2, maps_of(f->maps[1], i * OUTPUT2), bias, CHANNELS2, AREA2);
  for (long i = 0; i < f->n; i += GROUP)
    convolve_backward(f->maps[0].y + i * OUTPUT1, b->maps[0] + i * OUTPUT1, POOLED1 * CHANNELS1, OUTPUT1, b->kernels, sums,
                      b->maps[1] + i * OUTPUT2, f->maps[1].where + i * OUTPUT2, OUTPUT2, MIN(f->n - i, GROUP), CHANNELS1,
                      CHANNELS2, AREA2);
}

STAGE backward_first(const Forward *f, const Backward *b) {
  float *bias = b->sums + KERNELS1 + KERNELS2;
  for (long i = 0; i < f->n; i++)
    backward_pool(b->maps[0] + i * OUTPUT1, maps_of(f->maps[0], i * OUTPUT1), bias, CHANNELS1, AREA1);
  const int most = (V == 16 ? 30 : 12) / (KERNEL * ROW8), maps = most < 1 ? 1 : MIN(most, CHANNELS1);
  for (int first = 0; first < CHANNELS1; first += maps)
    for (long i = 0; i < f->n; i++) {
      const float *x = f->input + i * INPUT1, *gradient = b->maps[0] + i * OUTPUT1;
      const int32_t *where = f->maps[0].where + i * OUTPUT1;
      if (first + maps <= CHANNELS1) backward_images(x, SIDE1, b->sums, gradient, where, CHANNELS1, first, maps, AREA1);
      else backward_images(x, SIDE1, b->sums, gradient, where, CHANNELS1, first, CHANNELS1 % maps, AREA1);
    }
}
#endif

static void backward_convolution(const Call *call, const Forward *f, const Backward *b, long l, int finish) {
  if (l == 1 && !finish) {
    unflatten(f, b);
    memset(b->sums, 0, SUMS * sizeof(float));
  }
#if DENSE
  if (!finish && l) begin_backward(&call->layers[1], f, b, 1, CHANNELS2, OUT2, POOLED2);
  else if (!finish) begin_backward(&call->layers[0], f, b, 0, CHANNELS1, OUT1, POOLED1);
  else if (l) finish_backward(call, f, b, 1, CHANNELS2, OUT2);
  else finish_backward(call, f, b, 0, CHANNELS1, OUT1);
#else
  if (finish && l) backward_second(&call->layers[1], f, b);
  else if (finish) backward_first(f, b);
#endif
}
