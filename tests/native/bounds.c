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

int main(int argc, char **argv) {
  const long size = atol(argv[1]), count = argc - 2;
  for (long n = 1; n < 40; n += n < 4 ? 1 : 9)
    for (long shards = 1; shards < 5; shards++)
      for (int masked = 0; masked < 2; masked++) {
        Layer layers[MOST_LAYERS] = {0};
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
