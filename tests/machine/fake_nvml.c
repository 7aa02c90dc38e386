/* NVIDIA's management library, told by a file what to say: lines "KEY VALUE", or "INDEX.KEY VALUE"
 * of one GPU, in the file that FAKE_NVML names. What is not in it is not supported. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOT_SUPPORTED 3
#define TOO_SMALL 7

int users = 0;

static int get(int gpu, const char *key, char *value) {
    char wanted[64], line[128], name[64], text[64];
    FILE *file = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", "r");
    if (!file) return NOT_SUPPORTED;
    if (gpu < 0) snprintf(wanted, sizeof wanted, "%s", key);
    else snprintf(wanted, sizeof wanted, "%d.%s", gpu, key);
    int code = NOT_SUPPORTED;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "%63s %63[^\n]", name, text) == 2 && strcmp(name, wanted) == 0) {
            strcpy(value, text);
            code = 0;
        }
    fclose(file);
    return code;
}

static int number(void *gpu, const char *key, unsigned long long *value) {
    char text[64];
    int code = get((int)(intptr_t)gpu - 1, key, text);
    if (code == 0) *value = strtoull(text, NULL, 0);
    return code;
}

static int small(void *gpu, const char *key, unsigned *value) {
    unsigned long long wide;
    int code = number(gpu, key, &wide);
    if (code == 0) *value = (unsigned)wide;
    return code;
}

static int words(int gpu, const char *key, char *out, unsigned size) {
    char text[64];
    int code = get(gpu, key, text);
    if (code == 0) snprintf(out, size, "%s", text);
    return code;
}

int nvmlInit_v2(void) { users++; return 0; }
int nvmlShutdown(void) { users--; return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    char text[64];
    if (get(-1, "count", text)) return 9;
    *count = (unsigned)atoi(text);
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    *gpu = (void *)(intptr_t)(index + 1);
    return 0;
}
static int same(const char *key, const char *wanted, void **gpu) {
    char text[64];
    for (int index = 0; index < 4; index++)
        if (get(index, key, text) == 0 && strcmp(text, wanted) == 0)
            return nvmlDeviceGetHandleByIndex_v2(index, gpu);
    return 6;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) { return same("uuid", uuid, gpu); }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **gpu) { return same("bus", bus, gpu); }
int nvmlDeviceGetIndex(void *gpu, unsigned *index) {
    *index = (unsigned)((intptr_t)gpu - 1);
    return 0;
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) { return words(-1, "driver", out, size); }
int nvmlDeviceGetName(void *gpu, char *out, unsigned size) {
    return words((int)(intptr_t)gpu - 1, "name", out, size);
}
int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    char text[64];
    if (get((int)(intptr_t)gpu - 1, "capability", text)) return NOT_SUPPORTED;
    return sscanf(text, "%d.%d", major, minor) == 2 ? 0 : 999;
}
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *mj) {
    return number(gpu, "energy_mj", mj);
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *mw) { return small(gpu, "power_mw", mw); }
int nvmlDeviceGetClockInfo(void *gpu, unsigned kind, unsigned *mhz) {
    return small(gpu, kind == 0 ? "clock" : "memory_clock", mhz);
}
int nvmlDeviceGetMaxClockInfo(void *gpu, unsigned kind, unsigned *mhz) {
    return small(gpu, kind == 0 ? "clock_limit" : "memory_clock_limit", mhz);
}
int nvmlDeviceGetTemperature(void *gpu, unsigned sensor, unsigned *celsius) {
    return sensor == 0 ? small(gpu, "celsius", celsius) : 2;
}
int nvmlDeviceGetTemperatureThreshold(void *gpu, unsigned kind, unsigned *celsius) {
    return kind == 1 ? small(gpu, "celsius_limit", celsius) : 2;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *gpu, unsigned long long *mask) {
    return number(gpu, "throttled", mask);
}
int nvmlDeviceGetMemoryInfo(void *gpu, unsigned long long *memory) {
    memory[0] = memory[1] = 0;
    return number(gpu, "used", &memory[2]);
}
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *gpu, unsigned *count, process *list) {
    unsigned others = 0, room = *count;
    unsigned long long own;
    if (small(gpu, "others", &others)) return NOT_SUPPORTED;
    int listed = number(gpu, "own", &own) == 0;
    *count = others + listed;
    if (*count > room) return TOO_SMALL;
    for (unsigned i = 0; i < others; i++) list[i] = (process){100000000 + i, 1 << 20, 0, 0};
    if (listed) list[others] = (process){(unsigned)getpid(), own, 0, 0};
    return 0;
}
