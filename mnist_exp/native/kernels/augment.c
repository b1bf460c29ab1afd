// Random affine maps and elastic distortions of a batch of images, see data/augment.py.
#define ACTIVATION 0
#include "vectors.h"
#include "product.h"
#include "team.h"

typedef uint32_t uvec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef float v4 __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define SHUFFLE4 __builtin_shufflevector
#else
typedef int32_t i4 __attribute__((vector_size(16)));
#define SHUFFLE4(a, b, ...) __builtin_shuffle(a, b, (i4){__VA_ARGS__})
#endif

typedef struct {
  int64_t n, channels, side, cubic, shards;
  const float *images; // (n, channels, side, side)
  float *distorted;    // the same
  const float *background; // (channels)
  const float *maps;       // (n, 2, 3), from output to input coordinates, in units where the image spans [-1, 1]
  const float *noise;      // (n, 2, side, side), or NULL: drawn here from `seed`
  uint64_t seed;
  const float *smoothing;  // (side, side), or NULL: no elastic part
  const float *transposed;     // (side, stride): its transpose times the amplitude, 0 after the last column
  float *scratch;
} Distortion;

#define MARGIN 4 // empty pixels around an image, enough for 4 taps completely outside it

// Memory of one shard; planes are (side, stride).
typedef struct {
  long stride, plane, wide;
  float *noise, *half, *shift[2], *fraction[2], *padded;
  int32_t *place;
} Scratch;

static long scratch_floats(const Distortion *d) {
  const long plane = d->side * ROUND_UP(d->side, V), wide = d->side + 2 * MARGIN;
  return ROUND_UP(7 * plane + wide * wide + V, 16);
}
static Scratch scratch_of(const Distortion *d, long shard) {
  Scratch r = {ROUND_UP(d->side, V), d->side * ROUND_UP(d->side, V), d->side + 2 * MARGIN, 0, 0, {0}, {0}, 0, 0};
  float *at = d->scratch + shard * scratch_floats(d);
  r.noise = at, r.half = at + r.plane, r.shift[0] = at + 2 * r.plane, r.shift[1] = at + 3 * r.plane;
  r.fraction[0] = at + 4 * r.plane, r.fraction[1] = at + 5 * r.plane, r.place = (int32_t *)(at + 6 * r.plane);
  r.padded = at + 7 * r.plane;
  return r;
}

// A permutation of the 32-bit integers whose output bits depend on all input bits (Wellons 2018, "lowbias32").
INLINE uvec mix(uvec x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}
// Numbers uniform in [-1, 1): a function of the seed and of their index in the batch.
static void draw(float *to, long count, uint64_t seed, uint64_t first) {
  uvec lane;
  for (int i = 0; i < V; i++) lane[i] = i;
  const uint32_t low = seed, high = (seed >> 32) + (first >> 32) * 0x9e3779b9u;
  for (long i = 0; i < count; i += V) {
    const uvec bits = mix(mix(lane + (uint32_t)(first + i) + low) + high) >> 8;
    store(to + i, __builtin_convertvector((ivec)bits, vec) * 0x1p-23f - 1.0f);
  }
}

// Displacements (side, stride) of image i along one axis: noise, smoothed along both.
static void displace(const Distortion *d, const Scratch *r, long i, int axis) {
  const long side = d->side;
  if (d->noise)
    for (long y = 0; y < side; y++) {
      memset(r->noise + y * r->stride, 0, r->stride * sizeof(float));
      memcpy(r->noise + y * r->stride, d->noise + ((2 * i + axis) * side + y) * side, side * sizeof(float));
    }
  else draw(r->noise, r->plane, d->seed, (uint64_t)(2 * i + axis) * r->plane);
  multiply((Product){d->smoothing, side, 1, r->noise, r->stride, r->half, r->stride, side, r->stride, side, 0, 0});
  multiply((Product){r->half, r->stride, 1, d->transposed, r->stride, r->shift[axis], r->stride, side, r->stride, side, 0, 0});
}

// The source of each output pixel: its index in the padded image, and the fraction of a pixel beyond it along both axes.
static void locate(const Distortion *d, const Scratch *r, long i) {
  const long side = d->side;
  const float *map = d->maps + 6 * i, low = -(MARGIN - 1), high = side + 1;
  vec column;
  for (int k = 0; k < V; k++) column[k] = k;
  for (long y = 0; y < side; y++) {
    const float cy = (2 * y + 1) / (float)side - 1;
    for (long x = 0; x < r->stride; x += V) {
      const vec cx = (2 * (column + (float)x) + 1) / (float)side - 1;
      ivec place = {0};
      for (int axis = 0; axis < 2; axis++) {
        vec at = map[3 * axis] * cx + map[3 * axis + 1] * cy + map[3 * axis + 2];
        if (d->smoothing) at += load(r->shift[axis] + y * r->stride + x);
        at = ((at + 1) * (float)side - 1) * 0.5f;
        at = choose(at > low, at, splat(low)); // a NaN becomes `low`
        at = choose(at < high, at, splat(high));
        ivec whole = __builtin_convertvector(at, ivec);
        whole += __builtin_convertvector(whole, vec) > at; // rounded down: a comparison that holds is -1
        store(r->fraction[axis] + y * r->stride + x, at - __builtin_convertvector(whole, vec));
        place += (whole + (MARGIN - 1)) * (axis ? (int)r->wide : 1);
      }
      *(ivec *)(r->place + y * r->stride + x) = place;
    }
  }
}

// Weights of the four taps at -1, 0, 1, 2 as polynomials of the fraction, the constant term first: the cubic convolution of Keys 1981
// with a = -0.75, as in PyTorch, or linear interpolation.
static const v4 CUBIC[4] = {{0, 1, 0, 0}, {-0.75f, 0, 0.75f, 0}, {1.5f, -2.25f, 1.5f, -0.75f}, {-0.75f, 1.25f, -1.25f, 0.75f}};
static const v4 LINEAR[4] = {{0, 1, 0, 0}, {0, -1, 1, 0}, {0}, {0}};
INLINE v4 weights(float t, const v4 *p) { return p[0] + t * (p[1] + t * (p[2] + t * p[3])); }

static void sample(const Distortion *d, const Scratch *r, const float *image, float *to, float background) {
  const long side = d->side;
  const v4 *kind = d->cubic ? CUBIC : LINEAR, p[4] = {kind[0], kind[1], kind[2], kind[3]};
  for (long y = 0; y < side; y++)
    for (long x = 0; x < side; x++)
      r->padded[(y + MARGIN) * r->wide + x + MARGIN] = image[y * side + x] - background;
  for (long y = 0; y < side; y++) {
    float *row = r->half; // free after `displace`
    for (long x = 0; x < side; x += 4) { // up to 3 after the last column, for which `place` is set too
      v4 part[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const long k = y * r->stride + x + j;
        const float *from = r->padded + r->place[k];
        const v4 across = weights(r->fraction[0][k], p), down = weights(r->fraction[1][k], p);
        part[j] = across * ((down[0] * *(const v4 *)from + down[1] * *(const v4 *)(from + r->wide)) +
                            (down[2] * *(const v4 *)(from + 2 * r->wide) + down[3] * *(const v4 *)(from + 3 * r->wide)));
      }
      const v4 one = SHUFFLE4(part[0], part[1], 0, 4, 1, 5) + SHUFFLE4(part[0], part[1], 2, 6, 3, 7);
      const v4 two = SHUFFLE4(part[2], part[3], 0, 4, 1, 5) + SHUFFLE4(part[2], part[3], 2, 6, 3, 7);
      *(v4 *)(row + x) = SHUFFLE4(one, two, 0, 1, 4, 5) + SHUFFLE4(one, two, 2, 3, 6, 7) + background;
    }
    memcpy(to + y * side, row, side * sizeof(float));
  }
}

static void distort_part(const void *data, long shard) {
  const Distortion *d = data;
  const Scratch r = scratch_of(d, shard);
  const long area = d->side * d->side;
  memset(r.padded, 0, (r.wide * r.wide + V) * sizeof(float));
  for (long i = d->n * shard / d->shards; i < d->n * (shard + 1) / d->shards; i++) {
    for (int axis = 0; axis < 2 && d->smoothing; axis++) displace(d, &r, i, axis);
    locate(d, &r, i);
    for (long c = 0; c < d->channels; c++) {
      const long at = (i * d->channels + c) * area;
      sample(d, &r, d->images + at, d->distorted + at, d->background[c]);
    }
  }
}

// --- called from Python -----------------------------------------------------------------------------------------------

int64_t lanes(void) { return V; }
int64_t distortion_floats(const Distortion *d) { return scratch_floats(d) * d->shards; }
void distort(const Distortion *d) { for_each_part(distort_part, d, d->shards); }
// The noise (n, 2, side, side) that `distort` draws from a seed for n images.
void draw_noise(int64_t n, int64_t side, uint64_t seed, float *to, float *scratch) {
  const long stride = ROUND_UP(side, V), plane = side * stride;
  for (long i = 0; i < 2 * n; i++) {
    draw(scratch, plane, seed, (uint64_t)i * plane);
    for (long y = 0; y < side; y++) memcpy(to + (i * side + y) * side, scratch + y * stride, side * sizeof(float));
  }
}
