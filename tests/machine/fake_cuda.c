/* A CUDA driver with one context, and free memory as the file named by FAKE_CUDA says. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags) { return getenv("FAKE_CUDA") ? 0 : 100; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
int cuDeviceGetPCIBusId(char *bus, int size, int device) {
    strncpy(bus, getenv("FAKE_BUS"), size);
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
static void *current = NULL;
int cuCtxPushCurrent_v2(void *context) { current = context; return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = current; current = NULL; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    if (current == NULL) return 201;
    FILE *file = fopen(getenv("FAKE_CUDA"), "r");
    int read = fscanf(file, "%zu", free);
    fclose(file);
    *total = (size_t)8 << 30;
    return read == 1 ? 0 : 999;
}
