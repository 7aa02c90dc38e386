/* A CUDA driver whose device memory is the host's: what the kit calls, and nothing else. */
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int allocations = 0;

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return context == (void *)1 ? 0 : 201; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)7; return 0; }
int cuStreamDestroy_v2(void *stream) { return stream == (void *)7 ? 0 : 400; }
int cuStreamSynchronize(void *stream) { return stream == (void *)7 ? 0 : 400; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? 8 : 7;
    return 0;
}
int cuGetErrorString(int status, const char **text) { *text = "fake error"; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (size == 0) return 1;
    *address = (uint64_t)malloc(size);
    allocations++;
    return 0;
}
int cuMemFree_v2(uint64_t address) { free((void *)address); return 0; }
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
