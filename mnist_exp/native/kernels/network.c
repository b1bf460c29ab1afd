// One network on a CPU: logits from images, and the gradients of its parameters from the gradient of the logits.
//
// The batch is split into shards, each with its part of the workspace. A shard's images share vectors in the linear layers:
// features lie in memory as [feature][image], images rounded up to whole vectors. Sums over shards are taken in their order,
// so a result depends on the number of shards and not on who computed them, or when.
//
// Given on the compiler's command line: ACTIVATION; for a network with two convolutions also SIDE, PADDING, KERNEL,
// CHANNELS1, CHANNELS2.
#include "vectors.h"
#include "product.h"

#ifdef KERNEL
#include "convolution.h"
#define CONVOLUTIONS 2
#define SIDE1 (SIDE + 2 * PADDING)            // of the padded image
#define POOLED1 ((SIDE1 - KERNEL + 1) / 2)    // of the maps behind the first pooling
#define POOLED2 ((POOLED1 - KERNEL + 1) / 2)
#define IMAGES1 (CHANNELS1 <= V / 2 ? 2 : 1)  // that share a vector in the first convolution
#define BLOCKS1 ((CHANNELS1 * IMAGES1 + V - 1) / V)
#define BLOCKS2 ((CHANNELS2 + V - 1) / V)
#define INPUT1 (SIDE1 * SIDE1 + V)            // floats of an image in memory, with room for a vector behind it
#define OUTPUT1 (POOLED1 * POOLED1 * CHANNELS1 + V)
#define OUTPUT2 (POOLED2 * POOLED2 * CHANNELS2 + V)
#define AREA1 (POOLED1 * POOLED1)
#define AREA2 (POOLED2 * POOLED2)
#define PIXELS (SIDE * SIDE)
#define STAGE static __attribute__((noinline)) void // a name in a profile
#define PACKED1 (BLOCKS1 * V * KERNEL * TAPS(1)) // floats of weights, packed for the forward pass
#define PACKED2 (BLOCKS2 * V * KERNEL * TAPS(CHANNELS1))
#define KERNELS1 (CHANNELS1 * KERNEL * 8 * ROW8)
#define KERNELS2 (CHANNELS2 * KERNEL * TAP_ROW(CHANNELS1))
#define SUMS (KERNELS1 + KERNELS2 + ROUND_UP(CHANNELS1, V) + ROUND_UP(CHANNELS2, V))
#else
#define CONVOLUTIONS 0
#endif

// A layer with weights, as Python passes it. `mask`, (n, in), is what dropout multiplies its input by, or NULL.
typedef struct {
  int64_t in, out;
  const float *weight, *bias;
  int64_t strides[4]; // of a convolution's weight and its gradient
  float *weight_gradient, *bias_gradient;
  const float *mask;
} Layer;

typedef struct {
  int64_t count; // of layers
  Layer *layers;
  const float *images; // (n, pixels)
  float *logits;       // (n, classes), or its gradient
  float *workspace;    // of the forward pass, kept for the backward pass
  float *scratch;      // of the backward pass
  int64_t n, shards;
} Call;

// What one shard works with: images [first, first + n), n rounded up to `padded`.
#define MOST_LAYERS 64
typedef struct {
  long first, n, padded;
#if CONVOLUTIONS
  float *input; // padded images [n][INPUT1]
  Maps maps1, maps2;
  float *kernels, *pair; // packed weights, then biases; two images
#endif
  float *x[MOST_LAYERS];     // input of each linear layer, [in][padded]
  float *slope[MOST_LAYERS]; // derivative of the activation that made it
  float *last;               // [classes][padded]
  float *mask;
} Forward;

typedef struct {
  float *gradient, *next; // [features][padded]
  float *rows;            // a layer's input as [image][feature]
  float *narrow;
  float *mask;
#if CONVOLUTIONS
  float *maps2, *maps1; // gradients of the pooled maps
  float *kernels;       // packed weights of the second convolution
  float *sums;          // gradients of both convolutions' kernels and biases, packed
#endif
  float *own[2 * MOST_LAYERS]; // gradients of linear layers where they are not the first shard's
} Backward;

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
  f->maps1 = (Maps){take(&at, most * OUTPUT1), ACTIVATION == RELU ? 0 : take(&at, most * OUTPUT1),
                    (int32_t *)take(&at, most * OUTPUT1)};
  f->maps2 = (Maps){take(&at, most * OUTPUT2), ACTIVATION == RELU ? 0 : take(&at, most * OUTPUT2),
                    (int32_t *)take(&at, most * OUTPUT2)};
  f->kernels = take(&at, PACKED1 + PACKED2 + (BLOCKS1 + BLOCKS2) * V);
  f->pair = take(&at, 2 * INPUT1);
#endif
  for (long l = CONVOLUTIONS; l < call->count; l++) {
    f->x[l] = take(&at, call->layers[l].in * most);
    f->slope[l] = ACTIVATION == RELU || l == CONVOLUTIONS ? 0 : take(&at, call->layers[l].in * most);
  }
  f->last = take(&at, call->layers[call->count - 1].out * most);
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
  b->maps2 = take(&at, most * OUTPUT2);
  b->maps1 = take(&at, most * OUTPUT1);
  b->kernels = take(&at, KERNELS2);
  b->sums = take(&at, SUMS);
#endif
  for (long l = CONVOLUTIONS; l < call->count; l++) {
    const Layer *layer = &call->layers[l];
    b->own[2 * l] = shard ? take(&at, layer->in * layer->out) : layer->weight_gradient;
    b->own[2 * l + 1] = shard ? take(&at, layer->out) : layer->bias_gradient;
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

STAGE forward_first(const Layer *layer, const Forward *f) {
  float *weight = f->kernels, *bias = weight + PACKED1;
  pack_forward(layer->weight, layer->strides, layer->bias, weight, bias, CHANNELS1, 1, IMAGES1);
  for (long i = 0; i < f->n; i += IMAGES1) {
    const float *x = f->input + i * INPUT1;
    const Maps to = maps_of(f->maps1, i * OUTPUT1);
    if (IMAGES1 == 2) {
      const long other = i + 1 < f->n ? 1 : 0; // the last of an odd number is computed twice
      for (long k = 0; k < INPUT1; k++) f->pair[2 * k] = x[k], f->pair[2 * k + 1] = x[k + other * INPUT1];
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
    float *maps = f->maps1.y + i * OUTPUT1;
    memset(maps + OUTPUT1 - V, 0, V * sizeof(float)); // read by the backward pass, with weight 0
    for (int first = 0; first < CHANNELS2; first += V)
      convolve_pool_block(maps, POOLED1 * CHANNELS1, weight + first * KERNEL * TAPS(CHANNELS1), bias + first,
                          maps_of(f->maps2, i * OUTPUT2), CHANNELS1, CHANNELS2, first, POOLED2);
  }
}

// Between the second pooling and the first linear layer, whose features are in the order of PyTorch's flatten: channel, row,
// column.
static void flatten(const Forward *f) {
  for (long p = 0; p < AREA2; p++)
    transpose(f->maps2.y + p * CHANNELS2, OUTPUT2, f->x[2] + p * f->padded, AREA2 * f->padded, f->n, CHANNELS2);
}
static void unflatten(const Forward *f, const Backward *b) {
  for (long p = 0; p < AREA2; p++)
    transpose(b->gradient + p * f->padded, AREA2 * f->padded, b->maps2 + p * CHANNELS2, OUTPUT2, CHANNELS2, f->n);
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

static void forward_shard(const Call *call, long shard) {
  const Forward f = forward_part(call, shard);
  if (!f.n) return;
  const Layer *first = &call->layers[CONVOLUTIONS];
#if CONVOLUTIONS
  pad_images(call, &f);
  forward_first(&call->layers[0], &f);
  forward_second(&call->layers[1], &f);
  flatten(&f);
#else
  transpose(call->images + f.first * first->in, first->in, f.x[0], f.padded, f.n, first->in);
#endif
  clear_padding(f.x[CONVOLUTIONS], first->in, &f);
  for (long l = CONVOLUTIONS; l < call->count; l++) {
    const Layer *layer = &call->layers[l];
    const int last = l + 1 == call->count;
    float *z = last ? f.last : f.x[l + 1];
    if (layer->mask) multiply_by_mask(f.x[l], f.mask, layer, &f);
    multiply((Product){layer->weight, layer->in, 1, f.x[l], f.padded, z, f.padded, layer->out, f.padded, layer->in, layer->bias});
    for (long i = 0; !last && i < layer->out * f.padded; i += V) {
      vec slope;
      store(z + i, activation(load(z + i), &slope));
      if (ACTIVATION != RELU) store(f.slope[l + 1] + i, slope);
    }
  }
  const long classes = call->layers[call->count - 1].out;
  transpose(f.last, f.padded, call->logits + f.first * classes, classes, classes, f.n);
}

// --- backward --------------------------------------------------------------------------------------------------------

#if CONVOLUTIONS
// From the gradient of the pooled maps to that of the second convolution's weights and of the first one's pooled maps.
STAGE backward_second(const Layer *layer, const Forward *f, const Backward *b) {
  float *sums = b->sums + KERNELS1, *bias = b->sums + KERNELS1 + KERNELS2 + ROUND_UP(CHANNELS1, V);
  pack_backward(layer->weight, layer->strides, b->kernels, CHANNELS2, CHANNELS1);
  memset(b->maps1, 0, f->n * OUTPUT1 * sizeof(float));
  for (long i = 0; i < f->n; i++)
    backward_pool(b->maps2 + i * OUTPUT2, maps_of(f->maps2, i * OUTPUT2), bias, CHANNELS2, AREA2);
  for (long i = 0; i < f->n; i += GROUP)
    convolve_backward(f->maps1.y + i * OUTPUT1, b->maps1 + i * OUTPUT1, POOLED1 * CHANNELS1, OUTPUT1, b->kernels, sums,
                      b->maps2 + i * OUTPUT2, f->maps2.where + i * OUTPUT2, OUTPUT2, LEAST(f->n - i, GROUP), CHANNELS1,
                      CHANNELS2, AREA2);
}

STAGE backward_first(const Forward *f, const Backward *b) {
  float *bias = b->sums + KERNELS1 + KERNELS2;
  for (long i = 0; i < f->n; i++)
    backward_pool(b->maps1 + i * OUTPUT1, maps_of(f->maps1, i * OUTPUT1), bias, CHANNELS1, AREA1);
  const int most = (V == 16 ? 30 : 12) / (KERNEL * ROW8), maps = most < 1 ? 1 : LEAST(most, CHANNELS1);
  for (int first = 0; first < CHANNELS1; first += maps)
    for (long i = 0; i < f->n; i++) {
      const float *x = f->input + i * INPUT1, *gradient = b->maps1 + i * OUTPUT1;
      const int32_t *where = f->maps1.where + i * OUTPUT1;
      if (first + maps <= CHANNELS1) backward_images(x, SIDE1, b->sums, gradient, where, CHANNELS1, first, maps, AREA1);
      else backward_images(x, SIDE1, b->sums, gradient, where, CHANNELS1, first, CHANNELS1 % maps, AREA1);
    }
}
#endif

// Gradients of a linear layer's weight and bias from that of its output, (out, n): W' = G x^T, b' = the sum over images.
static void backward_weights(const Call *call, long l, const Forward *f, const Backward *b) {
  const Layer *layer = &call->layers[l];
  const long in = layer->in, as_given = !CONVOLUTIONS && l == 0 && !layer->mask && in >= V;
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

static void backward_shard(const Call *call, long shard) {
  const Forward f = forward_part(call, shard);
  Backward b = backward_part(call, shard);
  if (!f.n) return;
  const long classes = call->layers[call->count - 1].out;
  transpose(call->logits + f.first * classes, classes, b.gradient, f.padded, f.n, classes);
  clear_padding(b.gradient, classes, &f);
  for (long l = call->count - 1; l >= CONVOLUTIONS; l--) {
    const Layer *layer = &call->layers[l];
    backward_weights(call, l, &f, &b);
    if (l == 0) return;
    multiply((Product){layer->weight, 1, layer->in, b.gradient, f.padded, b.next, f.padded, layer->in, f.padded, layer->out, 0});
    if (layer->mask) multiply_by_mask(b.next, b.mask, layer, &f);
    for (long i = 0; l > CONVOLUTIONS && i < layer->in * f.padded; i += V) {
      vec g = load(b.next + i);
      if (ACTIVATION == RELU) g = choose(load(f.x[l] + i) <= 0, splat(0), g);
      else g *= load(f.slope[l] + i);
      store(b.next + i, g);
    }
    float *done = b.gradient;
    b.gradient = b.next, b.next = done;
  }
#if CONVOLUTIONS
  unflatten(&f, &b);
  memset(b.sums, 0, SUMS * sizeof(float));
  backward_second(&call->layers[1], &f, &b);
  backward_first(&f, &b);
#endif
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
int64_t workspace_floats(const Call *call) { return forward_size(call) * call->shards; }
int64_t scratch_floats(const Call *call) { return backward_size(call) * call->shards; }
void forward(const Call *call) { for_each_shard(forward_shard, call); }
void backward(const Call *call) {
  for_each_shard(backward_shard, call);
  if (call->shards > 1) for_each_shard(add_shards, call);
#if CONVOLUTIONS
  const Layer *one = &call->layers[0], *two = &call->layers[1];
  const float *sums1 = backward_part(call, 0).sums, *sums2 = sums1 + KERNELS1, *bias1 = sums2 + KERNELS2;
  unpack_gradient(sums1, 8 * ROW8, one->weight_gradient, one->strides, CHANNELS1, 1);
  unpack_gradient(sums2, TAP_ROW(CHANNELS1), two->weight_gradient, two->strides, CHANNELS2, CHANNELS1);
  memcpy(one->bias_gradient, bias1, CHANNELS1 * sizeof(float));
  memcpy(two->bias_gradient, bias1 + ROUND_UP(CHANNELS1, V), CHANNELS2 * sizeof(float));
#endif
}
