// One network on a CPU: logits from images, and the gradients of its parameters from the gradient of the logits; or a whole
// training step: the batch's images by their index, the loss and its gradient, and the optimizer's update.
//
// The batch is split into shards, each with its part of the workspace. In the linear layers a vector holds one feature of
// several images: features are stored as [feature][image], images rounded up to whole vectors. Sums over shards have a fixed
// order, so a result depends on the number of shards, but not on the thread that computes a shard.
//
// Macros on the compiler's command line: ACTIVATION; for a network with two convolutions also SIDE, PADDING, KERNEL,
// CHANNELS1, CHANNELS2, and DENSE (1 if a convolution has batch norm or average pooling) with AVERAGE.
#include "shards.h"
#if CONVOLUTIONS
#include "lenet5.h"
#endif
#include "loss.h"
#include "linear.h"
#include "update.h"

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

// The number of values in each mean of a layer's batch norm.
static double batch_norm_count(const Call *call, long l) {
#if CONVOLUTIONS
  if (l < CONVOLUTIONS) return (double)call->n * OUT[l] * OUT[l];
#else
  (void)l;
#endif
  return call->n;
}

// Mean and 1 / standard deviation, from the sums of all shards in fixed order, or from the running statistics.
static void find_statistics(const Call *call, long l) {
  const Layer *layer = &call->layers[l];
  const double count = batch_norm_count(call, l);
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

static void backward_shard(const Call *call, long shard) {
  const Forward f = forward_part(call, shard);
  Backward b = backward_part(call, shard);
  for (long l = 0; call->from == 0 && l < call->count; l++)
    if (call->layers[l].norm) memset(b.norm_sums[l], 0, 2 * call->layers[l].out * sizeof(double));
  if (call->from / 2 % 2) { // the result of every linear layer is in the other buffer
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

// Gradients of gamma and beta, and the means that batch norm's backward pass subtracts, 0 with running statistics.
static void find_backward_statistics(const Call *call, long l) {
  const Layer *layer = &call->layers[l];
  const double count = batch_norm_count(call, l);
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

// Add the gradients of all other shards to those of the first, in fixed order; `part` selects a part of the elements.
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

// --- called from Python -----------------------------------------------------------------------------------------------

int64_t lanes(void) { return V; }
int64_t workspace_floats(const Call *call) { return forward_size(call) * call->shards + statistics_size(call); }
int64_t scratch_floats(const Call *call) { return backward_size(call) * call->shards + statistics_size(call); }

// Run the steps before `to` on all shards.
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

// A whole step: the gradients of the mean loss, then the update of `update`. Returns 0, or 1 without any change if an index
// or a label is out of range.
int64_t train_step(Call *call) {
  const int64_t classes = call->layers[call->count - 1].out;
  for (long i = 0; i < call->n; i++) {
    if (call->index && (call->index[i] < 0 || call->index[i] >= call->examples)) return 1;
    const int64_t label = call->labels[example(call, i)];
    if (label < 0 || label >= classes) return 1;
  }
  forward(call);
  backward(call);
  double loss = 0, correct = 0;
  for (long s = 0; s < call->shards; s++) {
    const Forward f = forward_part(call, s);
    if (f.n) loss += f.loss[0], correct += f.loss[1];
  }
  *call->loss_sum += (float)loss;
  *call->correct += (int64_t)correct;
  if (call->update) apply_update(call);
  return 0;
}
