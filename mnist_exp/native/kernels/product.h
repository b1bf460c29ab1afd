// Matrix products by register tiles. Each element of the result is summed in the order of k in every tile, so results
// do not depend on the number of rows or columns computed together.

// C (m, n) = A (m, k) B (k, n) + bias (m), with a(i, k) = A[i * row + k * column] and rows of B and C b_stride and c_stride
// floats apart. n is at least V, or C and B have space for V floats in every row.
typedef struct {
  const float *a;
  long row, column;
  const float *b;
  long b_stride;
  float *c;
  long c_stride, m, n, k;
  const float *bias; // or NULL
  int add; // 1: add the product to C, without the bias
} Product;

// R rows by W vectors of columns, from row i and column j, for k from `from` to `to`: added to C unless `from` is 0.
INLINE void tile(const Product *p, long i, long j, long from, long to, const int R, const int W) {
  vec sum[8][4];
  float *c = p->c + i * p->c_stride + j;
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int w = 0; w < W; w++)
      sum[r][w] = from || p->add ? load(c + r * p->c_stride + w * V) : splat(p->bias ? p->bias[i + r] : 0.0f);
  const long row = p->row, column = p->column, b_stride = p->b_stride;
  const float *a = p->a + i * row + from * column, *b = p->b + j + from * b_stride;
  for (long k = from; k < to; k++, a += column, b += b_stride) {
    vec x[4];
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) x[w] = load(b + w * V);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) sum[r][w] = multiply_add(a[r * row], x[w], sum[r][w]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) store(c + r * p->c_stride + w * V, sum[r][w]);
}

// All rows of W vectors of columns from column j, in blocks of k for which B's columns stay in the level-1 cache.
#define BLOCK 128 // a multiple of V
INLINE void panel(const Product *p, long j, const int R, const int W) {
  for (long from = 0; from < p->k; from += BLOCK) {
    const long to = MIN(p->k, from + BLOCK);
    long i = 0;
    for (; i + R <= p->m; i += R) tile(p, i, j, from, to, R, W);
    for (; i + 4 <= p->m; i += 4) tile(p, i, j, from, to, 4, W);
    for (; i < p->m; i++) tile(p, i, j, from, to, 1, W);
  }
}

// The last columns, if they do not fill a vector, are computed with some of the columns before them, whose values do not change.
// With blocks of k these would be added twice, so the last columns are computed in one block of all k.
INLINE void multiply_strided(const Product *p) {
  const long widest = V == 16 ? 4 : 3;
  long j = 0;
  while (p->n - j >= V || j == 0) {
    const long w = MAX(MIN((p->n - j) / V, widest), 1);
    switch (w) {
#if V == 16
    case 4: panel(p, j, 6, 4); break;
    case 3: panel(p, j, 8, 3); break;
    case 2: panel(p, j, 8, 2); break;
#else
    case 3: panel(p, j, 4, 3); break;
    case 2: panel(p, j, 4, 2); break;
#endif
    default: panel(p, j, 8, 1);
    }
    j += w * V;
  }
  for (long i = 0; j < p->n && i < p->m; i += 4)
    if (i + 4 <= p->m) tile(p, i, p->n - V, 0, p->k, 4, 1);
    else
      for (; i < p->m; i++) tile(p, i, p->n - V, 0, p->k, 1, 1);
}

static void multiply(Product p) { multiply_strided(&p); }

// C (m, n) = A (m, k) X^T (k, n) + bias, with x(j, k) = x[j * k + k]: blocks of X are transposed into `buffer`,
// (BLOCK, c_stride), to be used while they are in the level-1 cache. Columns of C after n are computed as if X were 0 there.
static void multiply_transposed(Product p, const float *x, float *buffer) {
  const long images = p.n, padded = p.c_stride, K = p.k;
  for (long from = 0; from < K; from += BLOCK) {
    const long count = MIN(BLOCK, K - from);
    transpose(x + from, K, buffer, padded, images, count);
    for (long k = 0; k < count && images < padded; k++) memset(buffer + k * padded + images, 0, (padded - images) * sizeof(float));
    Product part = p;
    part.a = p.a + from, part.b = buffer, part.b_stride = padded, part.n = padded, part.k = count, part.add = from > 0;
    multiply_strided(&part);
  }
}
