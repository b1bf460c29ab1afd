// Layers, calls, the shards of a batch, and the layout of their memory.
#include "vectors.h"
#include "product.h"
#include "team.h"

#ifdef KERNEL
#include "convolution.h"
#if DENSE
#include "dense_convolution.h"
#include "normalize.h"
#endif
#define CONVOLUTIONS 2
#define SIDE1 (SIDE + 2 * PADDING)            // side of the padded image
#define OUT1 (SIDE1 - KERNEL + 1)             // side of the first convolution's maps
#define POOLED1 (OUT1 / 2)
#define OUT2 (POOLED1 - KERNEL + 1)
#define POOLED2 (OUT2 / 2)
#define AREA1 (POOLED1 * POOLED1)
#define AREA2 (POOLED2 * POOLED2)
#define PIXELS (SIDE * SIDE)
#define IMAGES1 (CHANNELS1 <= V / 2 ? 2 : 1)  // number of images in a vector of the first convolution
#define BLOCKS1 ((CHANNELS1 * IMAGES1 + V - 1) / V)
#define BLOCKS2 ((CHANNELS2 + V - 1) / V)
// Floats of an image, with space for one more vector: padded, and the maps after each pooling.
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
#define STAGE static __attribute__((noinline)) void // noinline, so that a profile shows it

#define BEFORE 1 // batch norm before the activation
#define AFTER 2  // batch norm after the activation

// A layer with weights, as Python passes it. `mask`, (n, in), is the factor of dropout for its input, or NULL.
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

struct Update;

typedef struct {
  int64_t count; // of layers
  Layer *layers;
  const float *images; // (n, pixels), or with `index` (examples, pixels)
  float *logits;       // (n, classes), or its gradient; not used with `labels`
  float *workspace;    // of the forward pass, kept for the backward pass
  float *scratch;      // of the backward pass
  int64_t n, shards;
  int64_t from, to;    // steps; each layer has two, before and after the sums of batch norm are known
  // For a whole training step; else NULL.
  const int64_t *index;  // (n), the images of the batch among `examples`, or NULL: images and labels are the batch
  const int64_t *labels; // (n) or (examples)
  int64_t examples;
  double smoothing;      // label smoothing
  float *loss_sum;       // the batch's sum over images is added
  int64_t *correct;      // the number of correct images is added
  struct Update *update; // or NULL: gradients only
} Call;

// The index of image i of the batch, and of its label.
INLINE long example(const Call *call, long i) { return call->index ? call->index[i] : i; }

#define MAX_LAYERS 64

// All pixels of a convolution's maps, [n][full] floats: the normalised ones, and the activation's derivative.
typedef struct {
  float *maps, *slope;
} Full;

// The forward pass of one shard: images [first, first + n), n rounded up to `padded`.
typedef struct {
  long first, n, padded;
  double *loss; // sum over its images, then the number of correct images
#if CONVOLUTIONS
  float *input; // padded images [n][INPUT1]
  Maps maps[2];
  Full full[2];
  float *kernels, *pair, *value; // packed weights, then biases; two images; maps of one image
#endif
  const float *images; // [n][in] for a first layer that is linear
  float *gathered;     // memory for them if the batch has an index, else NULL
  float *x[MAX_LAYERS + 1];      // input of each linear layer, [in][padded]; at the end the logits
  float *slope[MAX_LAYERS + 1];  // derivative of the activation; NULL for ReLU, where x is enough
  float *normal[MAX_LAYERS + 1]; // output of batch norm before gamma and beta
  double *sums[MAX_LAYERS];      // for batch norm of a layer
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
  double *norm_sums[MAX_LAYERS];
  float *own[2 * MAX_LAYERS]; // gradients of linear layers; those of the first shard are the result
} Backward;

#if CONVOLUTIONS
static const long OUT[2] = {OUT1, OUT2}, OUTPUT[2] = {OUTPUT1, OUTPUT2}, CHANNELS[2] = {CHANNELS1, CHANNELS2};
static long full_floats(long c) { return OUT[c] * OUT[c] * CHANNELS[c] + V; }
#endif

// Whether layer l reads the images directly; then x[0] has only space for a block of them.
static int takes_images(const Layer *layer, long l) { return !CONVOLUTIONS && l == 0 && !layer->mask && layer->in >= V; }

// Allocates `count` floats at *at, in whole cache lines.
static float *allocate(uintptr_t *at, long count) {
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

// The layout of a shard's memory from address `at`; returns its end.
static uintptr_t forward_layout(const Call *call, long shard, uintptr_t at, Forward *f) {
  const long blocks = (call->n + V - 1) / V, most = most_images(call);
  const long end = (blocks * (shard + 1) + call->shards - 1) / call->shards * V; // the first shard is never empty
  f->first = (blocks * shard + call->shards - 1) / call->shards * V;
  f->n = MIN(end, call->n) - MIN(f->first, call->n); // 0 if there are more shards than vectors of images
  f->padded = ROUND_UP(f->n, V);
  f->loss = (double *)allocate(&at, 4);
#if CONVOLUTIONS
  f->input = allocate(&at, most * INPUT1);
  for (long c = 0; c < 2; c++) {
    f->maps[c].y = allocate(&at, most * OUTPUT[c]);
    f->maps[c].slope = ACTIVATION == RELU || DENSE ? 0 : allocate(&at, most * OUTPUT[c]);
    f->maps[c].where = (int32_t *)allocate(&at, most * OUTPUT[c]);
    f->full[c].maps = DENSE ? allocate(&at, most * full_floats(c)) : 0;
    f->full[c].slope = DENSE ? allocate(&at, most * full_floats(c)) : 0;
  }
  f->kernels = allocate(&at, MAX(PACKED1 + BLOCKS1 * V, PACKED2 + BLOCKS2 * V));
  f->pair = allocate(&at, 2 * INPUT1);
  f->value = DENSE ? allocate(&at, MAX(full_floats(0), full_floats(1))) : 0;
#endif
  f->gathered = call->index && !CONVOLUTIONS ? allocate(&at, call->layers[0].in * most) : 0;
  f->images = f->gathered ? f->gathered : call->images + f->first * call->layers[0].in;
  for (long l = 0; l < call->count; l++) {
    const Layer *layer = &call->layers[l];
    f->sums[l] = layer->norm ? (double *)allocate(&at, 4 * layer->out) : 0;
    if (l < CONVOLUTIONS) continue;
    const long size = layer->out * most;
    const int hidden = l + 1 < call->count;
    if (l == CONVOLUTIONS) f->x[l] = allocate(&at, (takes_images(layer, l) ? BLOCK : layer->in) * most), f->slope[l] = f->normal[l] = 0;
    f->x[l + 1] = allocate(&at, size);
    f->slope[l + 1] = hidden && (ACTIVATION != RELU || layer->norm == AFTER) ? allocate(&at, size) : 0;
    f->normal[l + 1] = layer->norm ? allocate(&at, size) : 0;
  }
  f->mask = allocate(&at, widest(call) * most);
  return at;
}

static uintptr_t backward_layout(const Call *call, long shard, uintptr_t at, Backward *b) {
  const long most = most_images(call), wide = widest(call);
  b->gradient = allocate(&at, wide * most);
  b->next = allocate(&at, wide * most);
  b->rows = allocate(&at, ROUND_UP(wide, V) * most);
  b->narrow = allocate(&at, wide * V);
  b->mask = allocate(&at, wide * most);
#if CONVOLUTIONS
  for (long c = 0; c < 2; c++) {
    b->maps[c] = allocate(&at, most * OUTPUT[c]);
    b->full[c] = DENSE ? allocate(&at, most * full_floats(c)) : 0;
  }
  b->kernels = allocate(&at, KERNELS2);
  b->sums = allocate(&at, SUMS);
#endif
  for (long l = 0; l < call->count; l++) {
    const Layer *layer = &call->layers[l];
    b->norm_sums[l] = layer->norm ? (double *)allocate(&at, 4 * layer->out) : 0;
    b->own[2 * l] = shard && l >= CONVOLUTIONS ? allocate(&at, layer->in * layer->out) : layer->weight_gradient;
    b->own[2 * l + 1] = shard && l >= CONVOLUTIONS ? allocate(&at, layer->out) : layer->bias_gradient;
  }
  return at;
}

// Floats of one shard. The first needs less in the backward pass, because it writes into the result.
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

// After the shards: two numbers for each channel of each layer. Forward: mean and 1 / standard deviation; backward: mean of g
// and mean of g h (see normalize.h).
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

typedef struct {
  void (*work)(const Call *, long);
  const Call *call;
} ShardWork;
static void do_shard(const void *data, long shard) {
  const ShardWork *one = data;
  one->work(one->call, shard);
}
static void for_each_shard(void (*work)(const Call *, long), const Call *call) {
  for_each_part(do_shard, &(ShardWork){work, call}, call->shards);
}
