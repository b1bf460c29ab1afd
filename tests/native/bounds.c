// Runs the kernels on buffers of exactly the size they ask for, under the sanitizers: arguments are the image size, then the
// widths of the layers, with the two convolutions' channels first where there are any.
#include "network.c"
#include <stdio.h>
#include <stdlib.h>

static float *numbers(long count) {
  float *p = malloc(count * sizeof(float));
  for (long i = 0; i < count; i++) p[i] = (float)rand() / (float)RAND_MAX - 0.5f;
  return p;
}

// A whole step of images by their index, with each optimizer; and one with an index out of range.
static void take_step(Call *call, const float *images, long pixels) {
  const long n = call->n, classes = call->layers[call->count - 1].out;
  int64_t *index = malloc(n * sizeof(int64_t)), *labels = malloc(n * sizeof(int64_t)), correct = 0;
  float loss_sum = 0;
  for (long i = 0; i < n; i++) index[i] = n - 1 - i, labels[i] = i % classes;
  free(call->workspace), free(call->scratch);
  float *whole = numbers(n * pixels);
  memcpy(whole, images, n * pixels * sizeof(float));
  call->images = whole, call->index = index, call->labels = labels, call->examples = n;
  call->loss_sum = &loss_sum, call->correct = &correct, call->smoothing = 0.1;
  call->workspace = malloc(workspace_floats(call) * sizeof(float));
  call->scratch = malloc(scratch_floats(call) * sizeof(float));
  for (int kind = SGD; kind <= ADAMW; kind++) {
    Group group = {0.1, 0.1, 0.9, 0.9, 0.999, 1e-8, n % 2};
    Parameter parameters[MAX_LAYERS] = {0};
    Average averages[MAX_LAYERS] = {0};
    float steps = 0;
    for (long l = 0; l < call->count; l++) {
      const Layer *layer = &call->layers[l];
      const long out = layer->out;
      parameters[l] = (Parameter){out, (float *)layer->bias, layer->bias_gradient, numbers(out), numbers(out), &steps, &group};
      averages[l] = (Average){out, numbers(out), layer->bias};
      for (long o = 0; o < out; o++) parameters[l].second[o] += 1;
    }
    Update update = {kind, call->count, call->count, parameters, averages, n % 2 ? 0.5 : 0, 0.1};
    call->update = &update;
    if (train_step(call)) abort();
    index[n - 1] = n;
    if (!train_step(call)) abort();
    index[n - 1] = 0, labels[0] = classes;
    if (!train_step(call)) abort();
    labels[0] = 0;
    for (long l = 0; l < call->count; l++) free(parameters[l].first), free(parameters[l].second), free(averages[l].average);
  }
  free(index), free(labels), free(whole);
}

int main(int argc, char **argv) {
  const long size = atol(argv[1]), count = argc - 2;
  for (long n = 1; n < 40; n += n < 4 ? 1 : 9)
    for (long shards = 1; shards < 5; shards++)
      for (int masked = 0; masked < 2; masked++) {
        Layer layers[MAX_LAYERS] = {0};
        long in = CONVOLUTIONS ? 1 : size * size;
        for (long l = 0; l < count; l++) {
          Layer *layer = &layers[l];
          layer->in = in, layer->out = atol(argv[2 + l]);
          long weights = in * layer->out;
#if CONVOLUTIONS
          if (l < 2) {
            weights *= KERNEL * KERNEL;
            const int64_t strides[4] = {in * KERNEL * KERNEL, KERNEL * KERNEL, KERNEL, 1};
            memcpy(layer->strides, strides, sizeof strides);
          }
#endif
          layer->weight = numbers(weights), layer->bias = numbers(layer->out);
          layer->weight_gradient = malloc(weights * sizeof(float)), layer->bias_gradient = malloc(layer->out * sizeof(float));
          layer->mask = masked && l >= CONVOLUTIONS ? numbers(n * in) : 0;
          if (masked && l + 1 < count && (l >= CONVOLUTIONS || DENSE)) {
            layer->norm = 1 + l % 2, layer->batch = shards % 2, layer->momentum = 0.1, layer->eps = 1e-5;
            layer->gamma = numbers(layer->out), layer->beta = numbers(layer->out);
            layer->gamma_gradient = numbers(layer->out), layer->beta_gradient = numbers(layer->out);
            layer->running_mean = numbers(layer->out), layer->running_variance = numbers(layer->out);
            for (long o = 0; o < layer->out; o++) layer->running_variance[o] += 1;
          }
          in = layer->out;
#if CONVOLUTIONS
          if (l == 1) in *= AREA2;
#endif
        }
        Call call = {.count = count, .layers = layers, .n = n, .shards = shards};
        float *images = numbers(n * size * size), *logits = malloc(n * in * sizeof(float));
        call.images = images, call.logits = logits;
        call.workspace = malloc(workspace_floats(&call) * sizeof(float));
        call.scratch = malloc(scratch_floats(&call) * sizeof(float));
        forward(&call);
        backward(&call);
        take_step(&call, images, size * size);
        free(images), free(logits), free(call.workspace), free(call.scratch);
        for (long l = 0; l < count; l++) {
          free((void *)layers[l].weight), free((void *)layers[l].bias), free((void *)layers[l].mask);
          free(layers[l].weight_gradient), free(layers[l].bias_gradient);
          free((void *)layers[l].gamma), free((void *)layers[l].beta), free(layers[l].gamma_gradient);
          free(layers[l].beta_gradient), free(layers[l].running_mean), free(layers[l].running_variance);
        }
      }
  puts("within bounds");
}
