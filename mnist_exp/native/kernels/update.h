// The update of the weights: clipping of the gradients' norm (Pascanu et al. 2013), PyTorch's SGD, Adam and AdamW, and the
// exponential moving average of the weights. Tensors have no gaps in memory, and a parameter's tensors have the same layout.
#define SGD 0
#define ADAM 1  // weight decay as L2 penalty
#define ADAMW 2 // decoupled

// A group of parameters, as in the optimizer's param_groups.
typedef struct {
  double lr, decay, momentum, beta1, beta2, eps;
  int64_t nesterov;
} Group;

typedef struct {
  int64_t count;
  float *value, *gradient;
  float *first, *second; // SGD: the momentum's buffer or NULL; Adam: both moments
  float *steps;          // Adam: number of steps taken
  const Group *group;
} Parameter;

typedef struct {
  int64_t count;
  float *average;
  const float *value;
} Average;

typedef struct Update {
  int64_t kind, parameter_count, average_count;
  Parameter *parameters;
  Average *averages;
  double clip;   // largest norm of all gradients together; 0: any
  double weight; // average += weight (value - average)
} Update;

// The factor of PyTorch's clip_grad_norm_.
static float clip_factor(const Update *u) {
  double square = 0;
  for (long p = 0; p < u->parameter_count; p++) {
    const float *g = u->parameters[p].gradient;
    const long count = u->parameters[p].count, whole = count / V * V;
    for (long from = 0; from < whole; from += 1024 * V) {
      vec sum = {0};
      for (long i = from; i < MIN(whole, from + 1024 * V); i += V) sum += load(g + i) * load(g + i);
      square += total(sum);
    }
    for (long i = whole; i < count; i++) square += (double)g[i] * g[i];
  }
  const double factor = u->clip / (sqrt(square) + 1e-6);
  return factor > 1 ? 1 : factor; // NaN stays
}

static void sgd(const Parameter *p, long from, long to) {
  float *restrict value = p->value, *restrict buffer = p->first;
  const float *restrict gradient = p->gradient;
  const float lr = p->group->lr, decay = p->group->decay, momentum = p->group->momentum;
  if (!buffer)
    for (long i = from; i < to; i++) value[i] -= lr * (gradient[i] + decay * value[i]);
  else if (p->group->nesterov)
    for (long i = from; i < to; i++) {
      const float g = gradient[i] + decay * value[i], b = momentum * buffer[i] + g;
      buffer[i] = b;
      value[i] -= lr * (g + momentum * b);
    }
  else
    for (long i = from; i < to; i++) {
      const float b = momentum * buffer[i] + (gradient[i] + decay * value[i]);
      buffer[i] = b;
      value[i] -= lr * b;
    }
}

// Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2.
static void adam(const Parameter *p, long from, long to, int decoupled) {
  const Group *group = p->group;
  float *restrict value = p->value, *restrict first = p->first, *restrict second = p->second;
  const float *restrict gradient = p->gradient;
  const double steps = *p->steps + 1;
  const float size = group->lr / (1 - pow(group->beta1, steps)), root = sqrt(1 - pow(group->beta2, steps));
  const float forget1 = 1 - group->beta1, beta2 = group->beta2, forget2 = 1 - group->beta2, eps = group->eps;
  const float kept = decoupled ? 1 - group->lr * group->decay : 1, penalty = decoupled ? 0 : group->decay;
  for (long i = from; i < to; i++) {
    const float v = value[i], g = gradient[i] + penalty * v;
    const float m = first[i] + forget1 * (g - first[i]), s = beta2 * second[i] + forget2 * g * g;
    first[i] = m, second[i] = s;
    value[i] = kept * v - size * m / (sqrtf(s) / root + eps);
  }
}

// As torch.lerp.
static void move_average(const Average *a, long from, long to, double weight) {
  float *restrict average = a->average;
  const float *restrict value = a->value;
  const float w = weight, rest = 1 - weight;
  if (w < 0.5f)
    for (long i = from; i < to; i++) average[i] += w * (value[i] - average[i]);
  else
    for (long i = from; i < to; i++) average[i] = value[i] - rest * (value[i] - average[i]);
}

// Part `part` of every tensor; the average has the same parts as its parameter, so that the same thread writes and reads a value.
static void update_part(const Call *call, long part) {
  const Update *u = call->update;
  for (long k = 0; k < u->parameter_count; k++) {
    const Parameter *p = &u->parameters[k];
    const long from = p->count * part / call->shards, to = p->count * (part + 1) / call->shards;
    if (u->kind == SGD) sgd(p, from, to);
    else adam(p, from, to, u->kind == ADAMW);
  }
  for (long k = 0; k < u->average_count; k++) {
    const Average *a = &u->averages[k];
    move_average(a, a->count * part / call->shards, a->count * (part + 1) / call->shards, u->weight);
  }
}

static void apply_update(const Call *call) {
  const Update *u = call->update;
  if (u->clip > 0) {
    const float factor = clip_factor(u);
    for (long p = 0; p < u->parameter_count; p++)
      for (long i = 0; i < u->parameters[p].count; i++) u->parameters[p].gradient[i] *= factor;
  }
  for_each_shard(update_part, call);
  for (long p = 0; u->kind != SGD && p < u->parameter_count; p++) *u->parameters[p].steps += 1;
}
