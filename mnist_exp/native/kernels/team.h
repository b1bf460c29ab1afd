// Runs parts on PyTorch's own threads, because a second thread pool would compete for the cores. NULL: sequentially.
static void (*start_team)(void (*)(void *), void *, unsigned, unsigned);
static int (*thread_number)(void), (*team_size)(void);
void use_team(void *start, void *number, void *size) { start_team = start, thread_number = number, team_size = size; }

typedef struct {
  void (*work)(const void *, long);
  const void *data;
  long parts;
} Task;
static void run_parts(void *data) {
  const Task *task = data;
  for (long part = thread_number(); part < task->parts; part += team_size()) task->work(task->data, part);
}
static void for_each_part(void (*work)(const void *, long), const void *data, long parts) {
  if (parts > 1 && start_team) start_team(run_parts, &(Task){work, data, parts}, parts, 0);
  else
    for (long part = 0; part < parts; part++) work(data, part);
}
