/* Makes a program whose threads sleep in io_uring_enter(2) run under valgrind; loaded by LD_PRELOAD, for perf/instructions.
 *
 * valgrind runs one thread at a time, and lets go of its lock only around calls it knows may block. Version 3.19 does not know that
 * of io_uring_enter, so the first executor that sleeps there stops all the others for good. poll(2) it knows: what would sleep in
 * io_uring_enter waits in poll for the ring's descriptor first. liburing calls through libc's `syscall`, which this replaces. */

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/syscall.h>

enum { RING, TO_SUBMIT, MIN_COMPLETE, FLAGS };

static long call(long number, const long *arguments)
{
    register long fourth __asm__("r10") = arguments[3];
    register long fifth __asm__("r8") = arguments[4];
    register long sixth __asm__("r9") = arguments[5];
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(arguments[0]), "S"(arguments[1]), "d"(arguments[2]), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

long syscall(long number, ...)
{
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (int n = 0; n < 6; n++)
        arguments[n] = va_arg(list, long);
    va_end(list);
    if (number != SYS_io_uring_enter || arguments[MIN_COMPLETE] == 0)
        return call(number, arguments);
    long wanted = arguments[MIN_COMPLETE];
    long submitted = 0;
    if (arguments[TO_SUBMIT] > 0) {
        arguments[MIN_COMPLETE] = 0;
        submitted = call(number, arguments);
        if (submitted < 0)
            return submitted;
        arguments[TO_SUBMIT] = 0;
        arguments[MIN_COMPLETE] = wanted;
    }
    /* Interrupted: as if something was there; the call itself then says what is. */
    poll(&(struct pollfd){.fd = (int)arguments[RING], .events = POLLIN}, 1, -1);
    long result = call(number, arguments);
    return submitted > 0 ? submitted : result;
}
