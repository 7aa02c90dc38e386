/* A CUDA driver whose device memory is the host's: what the kit calls, and nothing else. */
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int allocations = 0, events = 0;
static size_t held = 0;

static int capability(int major) {
    const char *told = getenv("FAKE_SM");
    const char *dot = strchr(told ? told : (told = "8.7"), '.');
    return major ? atoi(told) : atoi(dot + 1);
}

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return context == (void *)1 ? 0 : 201; }
int cuCtxPushCurrent_v2(void *context) { return context == (void *)1 ? 0 : 201; }
int cuCtxPopCurrent_v2(void **context) { *context = (void *)1; return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)7; return 0; }
int cuStreamDestroy_v2(void *stream) { return stream == (void *)7 ? 0 : 400; }
int cuStreamSynchronize(void *stream) { return stream == (void *)7 ? 0 : 400; }
int cuDeviceGetName(char *name, int size, int device) {
    const char *told = getenv("FAKE_GPU");
    strncpy(name, told ? told : "Orin", size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = capability(which == 75);
    return 0;
}
int cuGetErrorString(int status, const char **text) { *text = "fake error"; return 0; }
int cuMemGetInfo_v2(size_t *free_, size_t *total) {
    *total = (size_t)8 << 30;
    *free_ = *total - held;
    return 0;
}
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (size == 0) return 1;
    *address = (uint64_t)malloc(size);
    held += malloc_usable_size((void *)*address);
    allocations++;
    return 0;
}
int cuMemFree_v2(uint64_t address) {
    held -= malloc_usable_size((void *)address);
    free((void *)address);
    return 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    if (size > malloc_usable_size((void *)to)) return 700;
    memcpy((void *)to, from, size);
    return stream == (void *)7 ? 0 : 400;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    if (size > malloc_usable_size((void *)from)) return 700;
    memcpy(to, (void *)from, size);
    return stream == (void *)7 ? 0 : 400;
}

/* Events hold the host's clock: all that is in the stream is done when its call returns. */
int cuEventCreate(void **event, unsigned flags) {
    *event = calloc(1, sizeof(struct timespec));
    events++;
    return 0;
}
int cuEventDestroy_v2(void *event) { free(event); events--; return 0; }
int cuEventRecord(void *event, void *stream) {
    clock_gettime(CLOCK_MONOTONIC, event);
    return stream == (void *)7 ? 0 : 400;
}
int cuEventElapsedTime(float *ms, void *start, void *end) {
    struct timespec *a = start, *b = end;
    if (!a->tv_sec || !b->tv_sec) return 400;
    *ms = (b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) / 1e6;
    return 0;
}
