// The linear layers, forward and backward, for one shard. Features are stored as [feature][image].
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

// The sums of normalize.h over the shard's images, of arrays [out][padded].
static void add_feature_sums(const float *a, const float *b, long out, const Forward *f, double *sums) {
  for (long o = 0; o < out; o++)
    for (long i = 0; i < f->n; i++) {
      sums[2 * o] += a[o * f->padded + i];
      sums[2 * o + 1] += (double)a[o * f->padded + i] * b[o * f->padded + i];
    }
}

#define AHEAD 2
static void gather(const Call *call, const Forward *f) {
  const long in = call->layers[0].in;
  for (long i = 0; f->gathered && i < f->n; i++) {
    // Without prefetching, the processor waits for the first cache lines of each image.
    if (i + AHEAD < f->n)
      for (long k = 0; k < in; k += 16) __builtin_prefetch(call->images + example(call, f->first + i + AHEAD) * in + k);
    memcpy(f->gathered + i * in, call->images + example(call, f->first + i) * in, in * sizeof(float));
  }
}

// The product of linear layer l, and for batch norm its sums.
static void begin_linear(const Call *call, const Forward *f, long l) {
  const Layer *layer = &call->layers[l];
  float *z = layer->norm ? f->normal[l + 1] : f->x[l + 1];
  Product product = {layer->weight, layer->in, 1, f->x[l], f->padded, z, f->padded, layer->out, f->padded, layer->in, layer->bias, 0};
  if (l == 0) gather(call, f);
  if (takes_images(layer, l)) {
    product.n = f->n;
    multiply_transposed(product, f->images, f->x[0]);
  } else {
    if (!CONVOLUTIONS && l == 0) transpose(f->images, layer->in, f->x[0], f->padded, f->n, layer->in);
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
    if (!call->labels) transpose(x, f->padded, call->logits + f->first * layer->out, layer->out, layer->out, f->n);
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

// gradient *= the derivative of the activation whose output is x[l].
static void backward_activation(float *gradient, const Forward *f, long l, long count) {
  for (long i = 0; i < count; i += V) {
    vec g = load(gradient + i);
    if (!f->slope[l]) g = choose(load(f->x[l] + i) <= 0, splat(0), g);
    else g *= load(f->slope[l] + i);
    store(gradient + i, g);
  }
}

// Gradients of a linear layer's weight and bias from the gradient G of its output, (out, n): W' = G x^T, b' = the sum over images.
static void backward_weights(const Call *call, long l, const Forward *f, const Backward *b) {
  const Layer *layer = &call->layers[l];
  const long in = layer->in, from_images = takes_images(layer, l);
  const long stride = from_images ? in : ROUND_UP(in, V);
  const float *rows = b->rows;
  if (from_images) rows = f->images;
  else transpose(f->x[l], f->padded, b->rows, stride, in, f->n);
  float *weight = b->own[2 * l], *bias = b->own[2 * l + 1];
  float *to = in < V ? b->narrow : weight;
  multiply((Product){b->gradient, f->padded, 1, rows, stride, to, in < V ? V : in, layer->out, in, f->n, 0, 0});
  for (long o = 0; o < layer->out; o++) {
    if (in < V) memcpy(weight + o * in, to + o * V, in * sizeof(float));
    vec sum = {0};
    for (long i = 0; i < f->padded; i += V) sum += load(b->gradient + o * f->padded + i);
    bias[o] = total(sum);
  }
}

// From the gradient of linear layer l's output to the gradient of batch norm's output, both in b->gradient, and its sums.
static void begin_backward_linear(const Call *call, const Forward *f, const Backward *b, long l) {
  const Layer *layer = &call->layers[l];
  if (l + 1 == call->count && call->labels) {
    cross_entropy(call, f, b->gradient);
    return;
  }
  if (l + 1 == call->count) {
    transpose(call->logits + f->first * layer->out, layer->out, b->gradient, f->padded, f->n, layer->out);
    clear_padding(b->gradient, layer->out, f);
    return;
  }
  if (layer->norm != AFTER) backward_activation(b->gradient, f, l + 1, layer->out * f->padded);
  if (layer->norm) add_feature_sums(b->gradient, f->normal[l + 1], layer->out, f, b->norm_sums[l]);
}

// From the gradient of batch norm's output to those of the product, the weights and, in b->next, the input.
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
  multiply((Product){layer->weight, 1, layer->in, b->gradient, f->padded, b->next, f->padded, layer->in, f->padded, layer->out, 0, 0});
  if (layer->mask) multiply_by_mask(b->next, b->mask, layer, f);
}
