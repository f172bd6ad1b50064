/* A loop that only reads, in passes: what memory gives at this moment to so many threads.
 *
 * reader_new(threads, bytes) makes a buffer in large pages and helpers that wait;
 * reader_pass(reader, ahead) reads all of it once, each thread its own part, with a prefetch 4096
 * bytes ahead where `ahead`, and returns seconds.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "read_all.h"

enum { LARGE_PAGE = 1 << 21, STEP = 256 };

struct reader {
  char *buffer;
  size_t part;
  int next, ahead;
  pthread_barrier_t begin, end;
};

static volatile int64_t sink;

static void read_part(struct reader *reader, int thread) {
  const char *mine = reader->buffer + thread * reader->part;
  sink += reader->ahead ? read_all(mine, reader->part, 4096) : read_all(mine, reader->part, 0);
}

static void *help(void *argument) {
  struct reader *reader = argument;
  int thread = __atomic_add_fetch(&reader->next, 1, __ATOMIC_RELAXED);
  for (;;) {
    pthread_barrier_wait(&reader->begin);
    read_part(reader, thread);
    pthread_barrier_wait(&reader->end);
  }
  return NULL;
}

struct reader *reader_new(int threads, size_t bytes) {
  struct reader *reader = calloc(1, sizeof *reader);
  size_t part = bytes / threads / STEP * STEP;
  size_t whole = (threads * part + 2 * (size_t)LARGE_PAGE) & ~((size_t)LARGE_PAGE - 1);
  pthread_t helper;
  if (reader == NULL || part == 0) return NULL;
  reader->buffer = aligned_alloc(LARGE_PAGE, whole);
  if (reader->buffer == NULL) return NULL;
  madvise(reader->buffer, whole, MADV_HUGEPAGE);
  memset(reader->buffer, 1, whole);
  reader->part = part;
  pthread_barrier_init(&reader->begin, NULL, threads);
  pthread_barrier_init(&reader->end, NULL, threads);
  for (int i = 1; i < threads; i++)
    if (pthread_create(&helper, NULL, help, reader) != 0) return NULL;
  return reader;
}

double reader_pass(struct reader *reader, int ahead) {
  struct timespec start, stop;
  reader->ahead = ahead;
  clock_gettime(CLOCK_MONOTONIC, &start);
  pthread_barrier_wait(&reader->begin);
  read_part(reader, 0);
  pthread_barrier_wait(&reader->end);
  clock_gettime(CLOCK_MONOTONIC, &stop);
  return (stop.tv_sec - start.tv_sec) + 1e-9 * (stop.tv_nsec - start.tv_nsec);
}
