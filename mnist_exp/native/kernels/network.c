// One network on a CPU: logits from images, and the gradients of its parameters from the gradient of the logits.
//
// The batch is split into shards, each with its part of the workspace. A shard's images share vectors in the linear layers:
// features lie in memory as [feature][image], images rounded up to whole vectors. Sums over shards are taken in their order,
// so a result depends on the number of shards and not on who computed them, or when.
//
// Given on the compiler's command line: ACTIVATION; for a network with two convolutions also SIDE, PADDING, KERNEL,
// CHANNELS1, CHANNELS2, and DENSE (1 where a convolution has batch norm or average pooling) with AVERAGE.
#include "vectors.h"
#include "product.h"
#include "normalize.h"

#ifdef KERNEL
#include "convolution.h"
#if DENSE
#include "dense_convolution.h"
#endif
#define CONVOLUTIONS 2
#define SIDE1 (SIDE + 2 * PADDING)            // of the padded image
#define OUT1 (SIDE1 - KERNEL + 1)             // of the first convolution's maps
#define POOLED1 (OUT1 / 2)
#define OUT2 (POOLED1 - KERNEL + 1)
#define POOLED2 (OUT2 / 2)
#define AREA1 (POOLED1 * POOLED1)
#define AREA2 (POOLED2 * POOLED2)
#define PIXELS (SIDE * SIDE)
#define IMAGES1 (CHANNELS1 <= V / 2 ? 2 : 1)  // that share a vector in the first convolution
#define BLOCKS1 ((CHANNELS1 * IMAGES1 + V - 1) / V)
#define BLOCKS2 ((CHANNELS2 + V - 1) / V)
// Floats of an image in memory, with room for a vector behind it: padded, and the maps behind the poolings.
#define INPUT1 (SIDE1 * SIDE1 + V)
#define OUTPUT1 (AREA1 * CHANNELS1 + V)
#define OUTPUT2 (AREA2 * CHANNELS2 + V)
// Floats of weights, packed for the forward pass, and of their gradients.
#define PACKED1 (BLOCKS1 * V * KERNEL * TAPS(1))
#define PACKED2 (BLOCKS2 * V * KERNEL * TAPS(CHANNELS1))
#define ROW1 (DENSE ? TAP_ROW(1) : 8 * ROW8)
#define KERNELS1 (CHANNELS1 * KERNEL * ROW1)
#define KERNELS2 (CHANNELS2 * KERNEL * TAP_ROW(CHANNELS1))
#define SUMS (KERNELS1 + KERNELS2 + ROUND_UP(CHANNELS1, V) + ROUND_UP(CHANNELS2, V))
#else
#define DENSE 0
#define CONVOLUTIONS 0
#endif
#define STAGE static __attribute__((noinline)) void // a name in a profile

// A layer with weights, as Python passes it. `mask`, (n, in), is what dropout multiplies its input by, or NULL.
typedef struct {
  int64_t in, out;
  const float *weight, *bias;
  int64_t strides[4]; // of a convolution's weight and its gradient
  float *weight_gradient, *bias_gradient;
  const float *mask;
  int64_t norm;       // 0, or BEFORE or AFTER the activation
  int64_t batch;      // 1: with the statistics of the batch, 0: with the running ones
  double momentum, eps;
  const float *gamma, *beta;
  float *gamma_gradient, *beta_gradient, *running_mean, *running_variance;
} Layer;

typedef struct {
  int64_t count; // of layers
  Layer *layers;
  const float *images; // (n, pixels)
  float *logits;       // (n, classes), or its gradient
  float *workspace;    // of the forward pass, kept for the backward pass
  float *scratch;      // of the backward pass
  int64_t n, shards;
  int64_t from, to;    // steps, of which each layer has two: what batch norm needs sums from, and the rest
} Call;

#define MOST_LAYERS 64

// All pixels of a convolution's maps, [n][full] floats: the normalised ones, and the activation's derivative.
typedef struct {
  float *maps, *slope;
} Full;

// What one shard works with: images [first, first + n), n rounded up to `padded`.
typedef struct {
  long first, n, padded;
#if CONVOLUTIONS
  float *input; // padded images [n][INPUT1]
  Maps maps[2];
  Full full[2];
  float *kernels, *pair, *value; // packed weights, then biases; two images; maps of one image
#endif
  float *x[MOST_LAYERS + 1];      // input of each linear layer, [in][padded]; at the end the logits
  float *slope[MOST_LAYERS + 1];  // derivative of the activation that made it, NULL where x says enough (ReLU)
  float *normal[MOST_LAYERS + 1]; // what batch norm made of it before gamma and beta
  double *sums[MOST_LAYERS];      // for batch norm of a layer
  float *mask;
} Forward;

typedef struct {
  float *gradient, *next; // [features][padded]
  float *rows;            // a layer's input as [image][feature]
  float *narrow;
  float *mask;
#if CONVOLUTIONS
  float *maps[2]; // gradients of the pooled maps
  float *full[2]; // and of all pixels
  float *kernels; // packed weights of the second convolution
  float *sums;    // gradients of both convolutions' kernels and biases, packed
#endif
  double *norm_sums[MOST_LAYERS];
  float *own[2 * MOST_LAYERS]; // gradients of linear layers where they are not the first shard's
} Backward;

#if CONVOLUTIONS
static const long OUT[2] = {OUT1, OUT2}, OUTPUT[2] = {OUTPUT1, OUTPUT2}, CHANNELS[2] = {CHANNELS1, CHANNELS2};
static long full_floats(long c) { return OUT[c] * OUT[c] * CHANNELS[c] + V; }
#endif

// Whether layer l reads the images as they are: then x[0] is only room for a block of them.
static int takes_images(const Layer *layer, long l) { return !CONVOLUTIONS && l == 0 && !layer->mask && layer->in >= V; }

// Takes room for `count` floats at *at, whole cache lines.
static float *take(uintptr_t *at, long count) {
  uintptr_t here = *at;
  *at += ROUND_UP(count, 16) * sizeof(float);
  return (float *)here;
}

static long most_images(const Call *call) {
  const long blocks = (call->n + V - 1) / V;
  return (blocks + call->shards - 1) / call->shards * V;
}
static long widest(const Call *call) {
  long most = call->layers[call->count - 1].out;
  for (long l = CONVOLUTIONS; l < call->count; l++)
    if (call->layers[l].in > most) most = call->layers[l].in;
  return most;
}

// The places of a shard that begins at `at`; returns where it ends.
static uintptr_t forward_layout(const Call *call, long shard, uintptr_t at, Forward *f) {
  const long blocks = (call->n + V - 1) / V, most = most_images(call);
  const long end = (blocks * (shard + 1) + call->shards - 1) / call->shards * V; // the first shard is never empty
  f->first = (blocks * shard + call->shards - 1) / call->shards * V;
  f->n = LEAST(end, call->n) - LEAST(f->first, call->n); // 0 where there are more shards than vectors of images
  f->padded = ROUND_UP(f->n, V);
#if CONVOLUTIONS
  f->input = take(&at, most * INPUT1);
  for (long c = 0; c < 2; c++) {
    f->maps[c].y = take(&at, most * OUTPUT[c]);
    f->maps[c].slope = ACTIVATION == RELU || DENSE ? 0 : take(&at, most * OUTPUT[c]);
    f->maps[c].where = (int32_t *)take(&at, most * OUTPUT[c]);
    f->full[c].maps = DENSE ? take(&at, most * full_floats(c)) : 0;
    f->full[c].slope = DENSE ? take(&at, most * full_floats(c)) : 0;
  }
  f->kernels = take(&at, LARGER(PACKED1 + BLOCKS1 * V, PACKED2 + BLOCKS2 * V));
  f->pair = take(&at, 2 * INPUT1);
  f->value = DENSE ? take(&at, LARGER(full_floats(0), full_floats(1))) : 0;
#endif
  for (long l = 0; l < call->count; l++) {
    const Layer *layer = &call->layers[l];
    f->sums[l] = layer->norm ? (double *)take(&at, 4 * layer->out) : 0;
    if (l < CONVOLUTIONS) continue;
    const long size = layer->out * most;
    const int hidden = l + 1 < call->count;
    if (l == CONVOLUTIONS) f->x[l] = take(&at, (takes_images(layer, l) ? BLOCK : layer->in) * most), f->slope[l] = f->normal[l] = 0;
    f->x[l + 1] = take(&at, size);
    f->slope[l + 1] = hidden && (ACTIVATION != RELU || layer->norm == AFTER) ? take(&at, size) : 0;
    f->normal[l + 1] = layer->norm ? take(&at, size) : 0;
  }
  f->mask = take(&at, widest(call) * most);
  return at;
}

static uintptr_t backward_layout(const Call *call, long shard, uintptr_t at, Backward *b) {
  const long most = most_images(call), wide = widest(call);
  b->gradient = take(&at, wide * most);
  b->next = take(&at, wide * most);
  b->rows = take(&at, ROUND_UP(wide, V) * most);
  b->narrow = take(&at, wide * V);
  b->mask = take(&at, wide * most);
#if CONVOLUTIONS
  for (long c = 0; c < 2; c++) {
    b->maps[c] = take(&at, most * OUTPUT[c]);
    b->full[c] = DENSE ? take(&at, most * full_floats(c)) : 0;
  }
  b->kernels = take(&at, KERNELS2);
  b->sums = take(&at, SUMS);
#endif
  for (long l = 0; l < call->count; l++) {
    const Layer *layer = &call->layers[l];
    b->norm_sums[l] = layer->norm ? (double *)take(&at, 4 * layer->out) : 0;
    b->own[2 * l] = shard && l >= CONVOLUTIONS ? take(&at, layer->in * layer->out) : layer->weight_gradient;
    b->own[2 * l + 1] = shard && l >= CONVOLUTIONS ? take(&at, layer->out) : layer->bias_gradient;
  }
  return at;
}

// Floats of one shard. The first needs less in the backward pass: it writes into the gradients themselves.
static long forward_size(const Call *call) {
  Forward f;
  return forward_layout(call, 0, 0, &f) / sizeof(float);
}
static long backward_size(const Call *call) {
  Backward b;
  return backward_layout(call, 1, 0, &b) / sizeof(float);
}
static Forward forward_part(const Call *call, long shard) {
  Forward f;
  forward_layout(call, shard, (uintptr_t)(call->workspace + shard * forward_size(call)), &f);
  return f;
}
static Backward backward_part(const Call *call, long shard) {
  Backward b;
  backward_layout(call, shard, (uintptr_t)(call->scratch + shard * backward_size(call)), &b);
  return b;
}

// Behind the shards: two numbers for each channel of each layer. Forward: mean and 1 / standard deviation; backward: mean of g
// and mean of g h.
static float *statistics(const Call *call, long l, int backward) {
  float *at = backward ? call->scratch + call->shards * backward_size(call) : call->workspace + call->shards * forward_size(call);
  for (long k = 0; k < l; k++) at += call->layers[k].norm ? 2 * call->layers[k].out : 0;
  return at;
}
static long statistics_size(const Call *call) {
  long size = 0;
  for (long l = 0; l < call->count; l++) size += call->layers[l].norm ? 2 * call->layers[l].out : 0;
  return size;
}

// Team of threads: PyTorch's own, since a second one would fight with it for the cores. NULL: one shard after the other.
static void (*start_team)(void (*)(void *), void *, unsigned, unsigned);
static int (*my_number)(void), (*team_size)(void);
void use_team(void *start, void *number, void *size) { start_team = start, my_number = number, team_size = size; }

typedef struct {
  void (*work)(const Call *, long);
  const Call *call;
} Task;
static void member(void *data) {
  const Task *task = data;
  for (long shard = my_number(); shard < task->call->shards; shard += team_size()) task->work(task->call, shard);
}
static void for_each_shard(void (*work)(const Call *, long), const Call *call) {
  if (call->shards > 1 && start_team) start_team(member, &(Task){work, call}, call->shards, 0);
  else
    for (long shard = 0; shard < call->shards; shard++) work(call, shard);
}

// --- forward ---------------------------------------------------------------------------------------------------------

#if CONVOLUTIONS
// Padded copies of the shard's images.
static void pad_images(const Call *call, const Forward *f) {
  memset(f->input, 0, f->n * INPUT1 * sizeof(float));
  for (long i = 0; i < f->n; i++)
    for (long row = 0; row < SIDE; row++)
      memcpy(f->input + i * INPUT1 + (row + PADDING) * SIDE1 + PADDING,
             call->images + (f->first + i) * PIXELS + row * SIDE, SIDE * sizeof(float));
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
    const long other = IMAGES1 == 2 && i + 1 < f->n ? 1 : 0; // the last of an odd number is computed twice
    if (IMAGES1 == 2) {
      interleave(x, x + other * INPUT1, f->pair);
      convolve_all(f->pair, SIDE1, weight, bias, to, to + other * size, 1, CHANNELS1, 0, LEAST(CHANNELS1, V / 2), OUT1, 2,
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

// Of convolution c: its maps, and for batch norm their sums.
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
      const long other = i + 1 < f->n ? 1 : 0; // the last of an odd number is computed twice
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

// Between the second pooling and the first linear layer, whose features are in the order of PyTorch's flatten: channel, row,
// column.
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
#endif

static void clear_padding(float *x, long features, const Forward *f) {
  for (long i = 0; f->n < f->padded && i < features; i++)
    memset(x + i * f->padded + f->n, 0, (f->padded - f->n) * sizeof(float));
}

static void multiply_by_mask(float *x, float *mask, const Layer *layer, const Forward *f) {
  transpose(layer->mask + f->first * layer->in, layer->in, mask, f->padded, f->n, layer->in);
  clear_padding(mask, layer->in, f);
  for (long i = 0; i < layer->in * f->padded; i += V) store(x + i, load(x + i) * load(mask + i));
}

static void activate(float *x, float *slope, long count) {
  for (long i = 0; i < count; i += V) {
    vec s;
    store(x + i, activation(load(x + i), &s));
    if (slope) store(slope + i, s);
  }
}

// sums as in normalize.h, over the shard's images of [out][padded].
static void add_feature_sums(const float *a, const float *b, long out, const Forward *f, double *sums) {
  for (long o = 0; o < out; o++)
    for (long i = 0; i < f->n; i++) {
      sums[2 * o] += a[o * f->padded + i];
      sums[2 * o + 1] += (double)a[o * f->padded + i] * b[o * f->padded + i];
    }
}

// Linear layer l: the product, and for batch norm the sums.
static void begin_linear(const Call *call, const Forward *f, long l) {
  const Layer *layer = &call->layers[l];
  float *z = layer->norm ? f->normal[l + 1] : f->x[l + 1];
  const float *images = call->images + f->first * layer->in;
  Product product = {layer->weight, layer->in, 1, f->x[l], f->padded, z, f->padded, layer->out, f->padded, layer->in, layer->bias, 0};
  if (takes_images(layer, l)) {
    product.n = f->n;
    multiply_turned(product, images, f->x[0]);
  } else {
    if (!CONVOLUTIONS && l == 0) transpose(images, layer->in, f->x[0], f->padded, f->n, layer->in);
    if (l == CONVOLUTIONS) clear_padding(f->x[l], layer->in, f);
    if (layer->mask) multiply_by_mask(f->x[l], f->mask, layer, f);
    multiply(product);
  }
  if (layer->norm == AFTER) activate(z, f->slope[l + 1], layer->out * f->padded);
  if (layer->norm) add_feature_sums(z, z, layer->out, f, f->sums[l]);
}

static void finish_linear(const Call *call, const Forward *f, long l) {
  const Layer *layer = &call->layers[l];
  float *x = f->x[l + 1], *normal = f->normal[l + 1];
  if (l + 1 == call->count) {
    transpose(x, f->padded, call->logits + f->first * layer->out, layer->out, layer->out, f->n);
    return;
  }
  const float *mean = statistics(call, l, 0), *scale = mean + layer->out;
  for (long o = 0; o < layer->out && layer->norm; o++)
    for (long i = o * f->padded; i < (o + 1) * f->padded; i += V) {
      const vec h = (load(normal + i) - mean[o]) * scale[o];
      store(normal + i, h);
      store(x + i, h * layer->gamma[o] + layer->beta[o]);
    }
  if (layer->norm != AFTER) activate(x, f->slope[l + 1], layer->out * f->padded);
}

static void forward_shard(const Call *call, long shard) {
  const Forward f = forward_part(call, shard);
  for (long l = 0; call->from == 0 && l < call->count; l++)
    if (call->layers[l].norm) memset(f.sums[l], 0, 2 * call->layers[l].out * sizeof(double));
  for (long step = call->from; f.n && step < call->to; step++) {
#if CONVOLUTIONS
    if (step < 2 * CONVOLUTIONS) {
      forward_convolution(call, &f, step);
      continue;
    }
#endif
    if (step % 2 == 0) begin_linear(call, &f, step / 2);
    else finish_linear(call, &f, step / 2);
  }
}

// How many numbers each mean of a layer's batch norm is taken over.
static double numbers_of(const Call *call, long l) {
#if CONVOLUTIONS
  if (l < CONVOLUTIONS) return (double)call->n * OUT[l] * OUT[l];
#else
  (void)l;
#endif
  return call->n;
}

// Mean and deviation from the sums of all shards, in their order; or the running ones.
static void find_statistics(const Call *call, long l) {
  const Layer *layer = &call->layers[l];
  const double count = numbers_of(call, l);
  float *mean = statistics(call, l, 0), *scale = mean + layer->out;
  for (long o = 0; o < layer->out; o++) {
    double m = layer->running_mean[o], variance = layer->running_variance[o];
    if (layer->batch) {
      double first = 0, second = 0;
      for (long s = 0; s < call->shards; s++) {
        const double *sums = forward_part(call, s).sums[l];
        first += sums[2 * o], second += sums[2 * o + 1];
      }
      m = first / count;
      variance = second / count - m * m;
      variance = variance < 0 ? 0 : variance;
      layer->running_mean[o] += layer->momentum * (m - layer->running_mean[o]);
      layer->running_variance[o] += layer->momentum * (variance * count / (count - 1) - layer->running_variance[o]);
    }
    mean[o] = m;
    scale[o] = 1 / sqrt(variance + layer->eps);
  }
}

// --- backward --------------------------------------------------------------------------------------------------------

#if CONVOLUTIONS
#if DENSE
// From the gradient of pooled maps to that of what batch norm gave, and its sums.
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

// From there to the gradient of the convolution's result, its weights and its input.
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
// From the gradient of the pooled maps to that of the second convolution's weights and of the first one's pooled maps.
STAGE backward_second(const Layer *layer, const Forward *f, const Backward *b) {
  float *sums = b->sums + KERNELS1, *bias = b->sums + KERNELS1 + KERNELS2 + ROUND_UP(CHANNELS1, V);
  pack_backward(layer->weight, layer->strides, b->kernels, CHANNELS2, CHANNELS1);
  memset(b->maps[0], 0, f->n * OUTPUT1 * sizeof(float));
  for (long i = 0; i < f->n; i++)
    backward_pool(b->maps[1] + i * OUTPUT2, maps_of(f->maps[1], i * OUTPUT2), bias, CHANNELS2, AREA2);
  for (long i = 0; i < f->n; i += GROUP)
    convolve_backward(f->maps[0].y + i * OUTPUT1, b->maps[0] + i * OUTPUT1, POOLED1 * CHANNELS1, OUTPUT1, b->kernels, sums,
                      b->maps[1] + i * OUTPUT2, f->maps[1].where + i * OUTPUT2, OUTPUT2, LEAST(f->n - i, GROUP), CHANNELS1,
                      CHANNELS2, AREA2);
}

STAGE backward_first(const Forward *f, const Backward *b) {
  float *bias = b->sums + KERNELS1 + KERNELS2;
  for (long i = 0; i < f->n; i++)
    backward_pool(b->maps[0] + i * OUTPUT1, maps_of(f->maps[0], i * OUTPUT1), bias, CHANNELS1, AREA1);
  const int most = (V == 16 ? 30 : 12) / (KERNEL * ROW8), maps = most < 1 ? 1 : LEAST(most, CHANNELS1);
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
#endif

// gradient *= the derivative of the activation that made x[l].
static void backward_activation(float *gradient, const Forward *f, long l, long count) {
  for (long i = 0; i < count; i += V) {
    vec g = load(gradient + i);
    if (!f->slope[l]) g = choose(load(f->x[l] + i) <= 0, splat(0), g);
    else g *= load(f->slope[l] + i);
    store(gradient + i, g);
  }
}

// Gradients of a linear layer's weight and bias from that of its output, (out, n): W' = G x^T, b' = the sum over images.
static void backward_weights(const Call *call, long l, const Forward *f, const Backward *b) {
  const Layer *layer = &call->layers[l];
  const long in = layer->in, as_given = takes_images(layer, l);
  const long stride = as_given ? in : ROUND_UP(in, V);
  const float *rows = b->rows;
  if (as_given) rows = call->images + f->first * in;
  else transpose(f->x[l], f->padded, b->rows, stride, in, f->n);
  float *weight = b->own[2 * l], *bias = b->own[2 * l + 1];
  float *to = in < V ? b->narrow : weight;
  multiply((Product){b->gradient, f->padded, 1, rows, stride, to, in < V ? V : in, layer->out, in, f->n, 0});
  for (long o = 0; o < layer->out; o++) {
    if (in < V) memcpy(weight + o * in, to + o * V, in * sizeof(float));
    vec sum = {0};
    for (long i = 0; i < f->padded; i += V) sum += load(b->gradient + o * f->padded + i);
    bias[o] = total(sum);
  }
}

// b->gradient, of the output of linear layer l: to that of what batch norm gave, and its sums.
static void begin_backward_linear(const Call *call, const Forward *f, const Backward *b, long l) {
  const Layer *layer = &call->layers[l];
  if (l + 1 == call->count) {
    transpose(call->logits + f->first * layer->out, layer->out, b->gradient, f->padded, f->n, layer->out);
    clear_padding(b->gradient, layer->out, f);
    return;
  }
  if (layer->norm != AFTER) backward_activation(b->gradient, f, l + 1, layer->out * f->padded);
  if (layer->norm) add_feature_sums(b->gradient, f->normal[l + 1], layer->out, f, b->norm_sums[l]);
}

// From there to the gradient of its product, its weights, and its input: in b->next.
static void finish_backward_linear(const Call *call, const Forward *f, const Backward *b, long l) {
  const Layer *layer = &call->layers[l];
  const float *scale = statistics(call, l, 0) + layer->out, *means = statistics(call, l, 1);
  for (long o = 0; o < layer->out && layer->norm; o++)
    for (long i = o * f->padded; i < (o + 1) * f->padded; i += V) {
      const vec g = load(b->gradient + i) - means[o] - load(f->normal[l + 1] + i) * means[layer->out + o];
      store(b->gradient + i, layer->gamma[o] * scale[o] * g);
    }
  if (layer->norm) clear_padding(b->gradient, layer->out, f);
  if (layer->norm == AFTER) backward_activation(b->gradient, f, l + 1, layer->out * f->padded);
  backward_weights(call, l, f, b);
  if (l == 0) return;
  multiply((Product){layer->weight, 1, layer->in, b->gradient, f->padded, b->next, f->padded, layer->in, f->padded, layer->out, 0});
  if (layer->mask) multiply_by_mask(b->next, b->mask, layer, f);
}

static void backward_shard(const Call *call, long shard) {
  const Forward f = forward_part(call, shard);
  Backward b = backward_part(call, shard);
  for (long l = 0; call->from == 0 && l < call->count; l++)
    if (call->layers[l].norm) memset(b.norm_sums[l], 0, 2 * call->layers[l].out * sizeof(double));
  if (call->from / 2 % 2) { // every linear layer leaves its result in the other one
    float *other = b.gradient;
    b.gradient = b.next, b.next = other;
  }
  for (long step = call->from; f.n && step < call->to; step++) {
    const long l = call->count - 1 - step / 2;
#if CONVOLUTIONS
    if (l < CONVOLUTIONS) {
      backward_convolution(call, &f, &b, l, step % 2);
      continue;
    }
#endif
    if (step % 2 == 0) begin_backward_linear(call, &f, &b, l);
    else {
      finish_backward_linear(call, &f, &b, l);
      float *done = b.gradient;
      b.gradient = b.next, b.next = done;
    }
  }
}

// Gradients of gamma and beta, and the means that batch norm's backward pass subtracts: none for running statistics.
static void find_backward_statistics(const Call *call, long l) {
  const Layer *layer = &call->layers[l];
  const double count = numbers_of(call, l);
  float *means = statistics(call, l, 1);
  for (long o = 0; o < layer->out; o++) {
    double first = 0, second = 0;
    for (long s = 0; s < call->shards; s++) {
      const double *sums = backward_part(call, s).norm_sums[l];
      first += sums[2 * o], second += sums[2 * o + 1];
    }
    layer->beta_gradient[o] = first, layer->gamma_gradient[o] = second;
    means[o] = layer->batch ? first / count : 0;
    means[layer->out + o] = layer->batch ? second / count : 0;
  }
}

// gradient[i] += the same of every further shard, in their order; shard `part` does its part of the elements.
static void add_shards(const Call *call, long part) {
  for (long s = 1; s < call->shards; s++) {
    if (!forward_part(call, s).n) continue;
    const Backward own = backward_part(call, 0), other = backward_part(call, s);
    for (long l = 2 * CONVOLUTIONS; l < 2 * call->count; l++) {
      const long count = call->layers[l / 2].out * (l % 2 ? 1 : call->layers[l / 2].in);
      for (long i = count * part / call->shards; i < count * (part + 1) / call->shards; i++) own.own[l][i] += other.own[l][i];
    }
#if CONVOLUTIONS
    for (long i = SUMS * part / call->shards; i < SUMS * (part + 1) / call->shards; i++) own.sums[i] += other.sums[i];
#endif
  }
}

// --- what Python calls -----------------------------------------------------------------------------------------------

int64_t lanes(void) { return V; }
int64_t workspace_floats(const Call *call) { return forward_size(call) * call->shards + statistics_size(call); }
int64_t scratch_floats(const Call *call) { return backward_size(call) * call->shards + statistics_size(call); }

// Steps up to `to` on all shards.
static void advance(void (*work)(const Call *, long), Call *call, long to) {
  call->to = to;
  for_each_shard(work, call);
  call->from = to;
}
void forward(Call *call) {
  call->from = 0;
  for (long l = 0; l < call->count; l++) {
    if (!call->layers[l].norm) continue;
    if (call->layers[l].batch) advance(forward_shard, call, 2 * l + 1);
    find_statistics(call, l);
  }
  advance(forward_shard, call, 2 * call->count);
}
void backward(Call *call) {
  call->from = 0;
  for (long l = call->count - 1; l >= 0; l--)
    if (call->layers[l].norm) {
      advance(backward_shard, call, 2 * (call->count - 1 - l) + 1);
      find_backward_statistics(call, l);
    }
  advance(backward_shard, call, 2 * call->count);
  if (call->shards > 1) for_each_shard(add_shards, call);
#if CONVOLUTIONS
  const Layer *one = &call->layers[0], *two = &call->layers[1];
  const float *sums1 = backward_part(call, 0).sums, *sums2 = sums1 + KERNELS1, *bias1 = sums2 + KERNELS2;
  unpack_gradient(sums1, ROW1, one->weight_gradient, one->strides, CHANNELS1, 1);
  unpack_gradient(sums2, TAP_ROW(CHANNELS1), two->weight_gradient, two->strides, CHANNELS2, CHANNELS1);
  memcpy(one->bias_gradient, bias1, CHANNELS1 * sizeof(float));
  memcpy(two->bias_gradient, bias1 + ROUND_UP(CHANNELS1, V), CHANNELS2 * sizeof(float));
#endif
}
