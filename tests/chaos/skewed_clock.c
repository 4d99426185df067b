/* Preloaded into a worker, shifts its wall clock by SKEWED_CLOCK seconds, and no other clock: waits stay as they are. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*unskewed)(clockid_t, struct timespec *);
    if (!unskewed)
        unskewed = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = unskewed(clock, now);
    const char *skew = getenv("SKEWED_CLOCK");
    if (!failed && clock == CLOCK_REALTIME && skew)
        now->tv_sec += atol(skew);
    return failed;
}
