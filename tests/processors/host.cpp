// Runs the kernels of a library that was built for another processor, under an emulator, for a Python process that is
// not emulated (emulated.py is its other end).
//
// It is started with the library's path. Standard input then brings calls: a function's name and its arguments, pointers
// as they are in the Python process. What a kernel reads or writes there is not mapped here, so it faults: the handler
// asks on standard output for the page, gets its bytes and puts them where the Python process has them. So addresses
// within tensors are right, too, and nothing needs to know how long a tensor is. After the call all pages go back.

#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr uintptr_t PAGE = 4096;
constexpr int MOST_PAGES = 1 << 17, MOST_INTEGERS = 40, MOST_FLOATS = 8;
uintptr_t pages[MOST_PAGES];
int count = 0;
std::atomic_flag busy = ATOMIC_FLAG_INIT;

void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    _exit(3);
}

void get(void *to, size_t bytes) {
    for (char *p = static_cast<char *>(to); bytes;) {
        const ssize_t done = read(0, p, bytes);
        if (done <= 0) _exit(0);  // the other end is gone
        p += done, bytes -= done;
    }
}

void put(const void *from, size_t bytes) {
    for (const char *p = static_cast<const char *>(from); bytes;) {
        const ssize_t done = write(1, p, bytes);
        if (done <= 0) _exit(0);
        p += done, bytes -= done;
    }
}

bool is_here(uintptr_t page) {
    for (int i = count - 1; i >= 0; i--)
        if (pages[i] == page) return true;
    return false;
}

// Filled elsewhere and then moved, so that no other thread sees it half-filled.
void fetch(int, siginfo_t *info, void *) {
    const uintptr_t page = reinterpret_cast<uintptr_t>(info->si_addr) & ~(PAGE - 1);
    while (busy.test_and_set(std::memory_order_acquire)) {}
    if (!is_here(page)) {  // another thread may have been faster
        const char request = 'P';
        put(&request, 1), put(&page, 8);
        char there;
        get(&there, 1);
        if (!there) fail("a kernel read or wrote where nothing is");
        void *made = mmap(nullptr, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED || count == MOST_PAGES) fail("no memory for a page");
        get(made, PAGE);
        void *place = reinterpret_cast<void *>(page);
        if (mremap(made, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place) fail("no room at a page's place");
        pages[count++] = page;
    }
    busy.clear(std::memory_order_release);
}

}  // namespace

// The C library's own clears whole cache lines, and where one of those faults QEMU goes on at the wrong instruction.
extern "C" __attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memset(void *to, int value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) static_cast<char *>(to)[i] = static_cast<char>(value);
    return to;
}

namespace {

// Integers and pointers are passed in registers of one kind and on the stack, floats in registers of another kind: a
// function finds its own whatever order its parameters are in, as long as the floats are no more than those registers.
void call(void *function, const int64_t *n, const float *f) {
    using Kernel = void (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                            int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                            int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                            int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                            float, float, float, float, float, float, float, float);
    reinterpret_cast<Kernel>(function)(
        n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16], n[17],
        n[18], n[19], n[20], n[21], n[22], n[23], n[24], n[25], n[26], n[27], n[28], n[29], n[30], n[31], n[32], n[33],
        n[34], n[35], n[36], n[37], n[38], n[39], f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]);
}

}  // namespace

int main(int, char **arguments) {
    void *library = dlopen(arguments[1], RTLD_NOW);
    if (!library) fail(dlerror());
    struct sigaction action = {};
    action.sa_sigaction = fetch;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
    const char ready = 'D';
    put(&ready, 1);
    for (;;) {
        int32_t sizes[3];  // of the name, integers, floats
        get(sizes, sizeof(sizes));
        char name[256] = {};
        int64_t integers[MOST_INTEGERS] = {};
        float floats[MOST_FLOATS] = {};
        if (sizes[0] > 255 || sizes[1] > MOST_INTEGERS || sizes[2] > MOST_FLOATS) fail("too many arguments");
        get(name, sizes[0]), get(integers, 8 * sizes[1]), get(floats, 4 * sizes[2]);
        void *function = dlsym(library, name);
        if (!function) fail(dlerror());
        call(function, integers, floats);
        for (int i = 0; i < count; i++) {
            const char back = 'B';
            put(&back, 1), put(&pages[i], 8), put(reinterpret_cast<void *>(pages[i]), PAGE);
            munmap(reinterpret_cast<void *>(pages[i]), PAGE);
        }
        count = 0;
        put(&ready, 1);
    }
}
