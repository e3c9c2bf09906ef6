// How long OpenMP's threads spin before they sleep.
//
// By default a waiting thread of GNU's libgomp spins for about three milliseconds, at the end of every parallel region
// and between two regions. On a shared machine, that thread occupies the core that the thread it waits for needs, and
// everything was measured to become several times slower. The variables that change this, GOMP_SPINCOUNT and
// OMP_WAIT_POLICY, are read when the library is loaded, which importing PyTorch may have done long before.
//
// But libgomp spins for only a microsecond if there are more OpenMP threads than processors (its manual, under
// GOMP_SPINCOUNT), and it checks this each time. So this file adds a small team of threads, more than there are
// processors, that sleeps as long as the process lives. PyTorch's regions benefit as well if they run on the same
// libgomp, as in PyTorch's wheels.

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
    team_size = omp_get_num_threads();  // an empty region would be optimized away
    for (;;) pause();
    return nullptr;
}

void add_sleepers() {
    if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;  // the user has decided
    if (omp_get_max_threads() == 1) return;                                       // no thread waits
    // Together with the threads of the program's own team there is one more than there are processors.
    const int threads = std::max(2, omp_get_num_procs() - omp_get_max_threads() + 2);
    sigset_t all, before;  // signals must go to the program's own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    if (pthread_create(&thread, nullptr, sleep_for_good, reinterpret_cast<void *>(intptr_t(threads))) == 0)
        pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace

extern "C" {

// Acts once per process; a forked child inherits its parent's thread count.
void gossamer_wait_briefly() {
    static std::once_flag once;
    std::call_once(once, add_sleepers);
}

}  // extern "C"
