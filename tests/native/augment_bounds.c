// Runs the augmentation on buffers of exactly the size it asks for, under the sanitizers, with maps that lead far outside.
#include "augment.c"
#include <stdio.h>
#include <stdlib.h>

static float *numbers(long count, float largest) {
  float *p = malloc(count * sizeof(float));
  for (long i = 0; i < count; i++) p[i] = ((float)rand() / (float)RAND_MAX - 0.5f) * 2 * largest;
  return p;
}

int main(void) {
  for (long side = 1; side < 40; side += side < 4 ? 1 : 12)
    for (long n = 1; n < 6; n += 2)
      for (long shards = 1; shards < 8; shards += 3)
        for (int kind = 0; kind < 8; kind++) {
          const long channels = kind % 2 ? 3 : 1, pixels = n * channels * side * side, stride = ROUND_UP(side, V);
          float *images = numbers(pixels, 1), *distorted = malloc(pixels * sizeof(float)), *background = numbers(channels, 1);
          float *maps = numbers(6 * n, 1e9f * (kind % 3)), *noise = numbers(2 * n * side * side, 1);
          float *smoothing = numbers(side * side, 1), *transposed = numbers(side * stride, kind % 3 ? 1e30f : 1);
          maps[0] = kind % 4 == 3 ? NAN : maps[0];
          Distortion d = {n, channels, side, kind / 2 % 2, shards, images, distorted, background, maps, kind / 4 ? noise : 0, 3};
          d.smoothing = kind % 4 == 2 ? 0 : smoothing, d.transposed = transposed;
          d.scratch = malloc(distortion_floats(&d) * sizeof(float));
          distort(&d);
          free(d.scratch);
          d.scratch = malloc(side * stride * sizeof(float));
          draw_noise(n, side, ~0ull, noise, d.scratch);
          free(images), free(distorted), free(background), free(maps), free(noise), free(smoothing), free(transposed), free(d.scratch);
        }
  puts("within bounds");
}
