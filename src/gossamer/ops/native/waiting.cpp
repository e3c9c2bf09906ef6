// How long OpenMP's threads look for new work before they sleep.
//
// Where nothing else is said, GNU's libgomp has a thread that waits look for some three milliseconds, at the end of every
// parallel region and between two. On a machine that others use too, that thread has the core that the one it waits for
// needs, and everything was measured to become several times slower. The variables that change this, GOMP_SPINCOUNT and
// OMP_WAIT_POLICY, are read when the library is loaded, which a program may have done by importing PyTorch long before.
//
// But libgomp looks only for a microsecond wherever there are more OpenMP threads than processors (its manual, under
// GOMP_SPINCOUNT), and that it asks each time. So here is a small team more than there are processors, which sleeps as
// long as the process lives. It serves PyTorch's regions, too, if they run on the same libgomp, as in its wheels.

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <omp.h>
#include <pthread.h>
#include <unistd.h>

namespace {

volatile int team_size;

void *sleep_for_good(void *threads) {
#pragma omp parallel num_threads(int(reinterpret_cast<intptr_t>(threads)))
    team_size = omp_get_num_threads();  // an empty region would be left out
    for (;;) pause();
    return nullptr;
}

void add_sleepers() {
    if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;  // the user has decided
    if (omp_get_max_threads() == 1) return;                                       // nobody waits
    // With those of the program's own team they are one more than the processors.
    const int threads = std::max(2, omp_get_num_procs() - omp_get_max_threads() + 2);
    sigset_t all, before;  // signals are for the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    if (pthread_create(&thread, nullptr, sleep_for_good, reinterpret_cast<void *>(intptr_t(threads))) == 0)
        pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace

extern "C" {

// Once in a process; a child that was forked has its parent's count.
void gossamer_wait_briefly() {
    static std::once_flag once;
    std::call_once(once, add_sleepers);
}

}  // extern "C"
