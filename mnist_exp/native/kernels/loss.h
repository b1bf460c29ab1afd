// Softmax cross entropy with label smoothing (Szegedy et al. 2016, section 7) of a shard's logits z: log sum e^z - (1 - s) z_label
// - s mean z, and the gradient of its mean over the batch: softmax(z) - (1 - s) [label] - s / classes, divided by n.
static void cross_entropy(const Call *call, const Forward *f, float *gradient) {
  const long classes = call->layers[call->count - 1].out, padded = f->padded;
  const float *z = f->x[call->count];
  const float on_label = 1 - call->smoothing, on_each = call->smoothing / classes, share = 1.0f / call->n;
  double loss = 0, correct = 0;
  for (long i = 0; i < f->n; i += V) {
    vec most = load(z + i), sum = {0}, all = {0};
    ivec best = {0};
    for (long c = 1; c < classes; c++) { // like argmax: the first of equals; a NaN is the largest
      const vec q = load(z + c * padded + i);
      const ivec taken = (q > most) | ((q != q) & (most == most));
      most = choose(taken, q, most);
      best = (taken & ((ivec){0} + (int)c)) | (~taken & best);
    }
    for (long c = 0; c < classes; c++) {
      const vec q = load(z + c * padded + i), e = exponential(q - most);
      store(gradient + c * padded + i, e);
      sum += e;
      if (on_each > 0) all += on_each * q; // 0 times infinity is NaN
    }
    const vec scale = share / sum;
    for (long c = 0; c < classes; c++)
      store(gradient + c * padded + i, load(gradient + c * padded + i) * scale - on_each * share);
    for (long k = 0; k < V && i + k < f->n; k++) {
      const long label = call->labels[example(call, f->first + i + k)], at = label * padded + i + k;
      gradient[at] -= on_label * share;
      loss += log(sum[k]) + most[k] - on_label * z[at] - all[k];
      correct += best[k] == label;
    }
  }
  f->loss[0] = loss, f->loss[1] = correct;
  for (long c = 0; f->n < padded && c < classes; c++)
    memset(gradient + c * padded + f->n, 0, (padded - f->n) * sizeof(float));
}
