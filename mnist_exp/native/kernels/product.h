// Matrix products by register tiles. Each element of the result is summed in the order of k, whatever the tile it falls in,
// so results do not depend on the number of rows or columns computed together.

// C (m, n) = A (m, k) B (k, n) + bias (m), with a(i, k) = A[i * row + k * column] and rows of B and C b_stride and c_stride
// floats apart. n is at least V, or C and B have room for V floats in every row.
typedef struct {
  const float *a;
  long row, column;
  const float *b;
  long b_stride;
  float *c;
  long c_stride, m, n, k;
  const float *bias; // or NULL
} Product;

// R rows by W vectors of columns, from row i and column j.
INLINE void tile(const Product *p, long i, long j, const int R, const int W) {
  vec sum[8][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
    for (int w = 0; w < W; w++) sum[r][w] = splat(p->bias ? p->bias[i + r] : 0.0f);
  const float *a = p->a + i * p->row, *b = p->b + j;
  const long row = p->row, column = p->column, b_stride = p->b_stride, K = p->k;
  for (long k = 0; k < K; k++, a += column, b += b_stride) {
    vec x[4];
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) x[w] = load(b + w * V);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) sum[r][w] += a[r * row] * x[w];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) store(p->c + (i + r) * p->c_stride + j + w * V, sum[r][w]);
}

// All rows of W vectors of columns from column j. The last tile overlaps the one before it: the same values twice.
INLINE void panel(const Product *p, long j, const int R, const int W) {
  if (p->m < R)
    for (long i = 0; i < p->m; i++) tile(p, i, j, 1, W);
  else
    for (long i = 0; i < p->m; i += R) tile(p, i < p->m - R ? i : p->m - R, j, R, W);
}

INLINE void multiply_strided(const Product *p) {
  const long widest = V == 16 ? 4 : 3;
  for (long j = 0; j < p->n;) {
    const long left = p->n - j, w = left >= widest * V ? widest : left >= V ? left / V : 1;
    const long at = left >= w * V || j == 0 ? j : p->n - w * V;
    switch (w) {
#if V == 16
    case 4: panel(p, at, 6, 4); break;
    case 3: panel(p, at, 8, 3); break;
    case 2: panel(p, at, 8, 2); break;
#else
    case 3: panel(p, at, 4, 3); break;
    case 2: panel(p, at, 4, 2); break;
#endif
    default: panel(p, at, 8, 1);
    }
    j = at + w * V;
  }
}

static void multiply(Product p) { multiply_strided(&p); }
