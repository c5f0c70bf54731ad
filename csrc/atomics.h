/* Atomic loads, stores and fences, compiled away where the GIL already orders everything.
 *
 * LAPSE_THREADS is 1 on a free-threaded interpreter and in the C race tests, 0 on a GIL build.
 * Field types stay plain; every access to a shared field goes through one of these macros, and the
 * comment at the access names its partner. docs/concurrency.md holds the table of all fields.
 *
 *   ACQUIRE(p)   load; later accesses stay after it      PUBLISH(p, v)  store; earlier ones stay before
 *   RELAXED(p)   load, no order                          STORE(p, v)    store, no order
 *   READ_FENCE() earlier loads stay before later loads   WRITE_FENCE()  earlier stores before later stores
 *   ADD(p, n)    relaxed read-modify-write               FULL_FENCE()   nothing passes it
 *   PUBLISH_ADD(p, n)   the same; earlier accesses stay before
 *   COMPARE_SWAP64(p, seen, v)   relaxed: store v if *p is still `seen`; was it?
 *   PAUSE()      a hint inside a spin
 *
 * With LAPSE_YIELD a test is the machine (csrc/tests/machine.h): before every access another thread may go
 * on, and what may be reordered is.
 */
#ifndef LAPSE_ATOMICS_H
#define LAPSE_ATOMICS_H

#include <stdint.h>

#ifndef LAPSE_THREADS
#  ifdef Py_GIL_DISABLED
#    define LAPSE_THREADS 1
#  else
#    define LAPSE_THREADS 0
#  endif
#endif

#if !LAPSE_THREADS
#  define ACQUIRE(p) (*(p))
#  define RELAXED(p) (*(p))
#  define PUBLISH(p, v) ((void)(*(p) = (v)))
#  define STORE(p, v) ((void)(*(p) = (v)))
#  define ADD(p, n) ((void)(*(p) += (n)))
#  define PUBLISH_ADD(p, n) ADD(p, n)
#  define FETCH_ADD64(p, n) ((*(p) += (n)) - (n))
#  define COMPARE_SWAP64(p, seen, v) (*(p) == (seen) ? (*(p) = (v), 1) : 0)
#  define READ_FENCE() ((void)0)
#  define WRITE_FENCE() ((void)0)
#  define FULL_FENCE() ((void)0)
#  define PAUSE() ((void)0)

#elif defined(LAPSE_YIELD)
#  include <stddef.h>
void lapse_yield(void);
void lapse_wait(void);
uint64_t lapse_load(const void *word, size_t bytes, int acquires);
void lapse_store(void *word, size_t bytes, int releases); /* about to happen */
void lapse_read_fence(void);
void lapse_write_fence(void);
void lapse_full_fence(void);
#  define ACQUIRE(p) ((__typeof__(*(p)))lapse_load((p), sizeof *(p), 1))
#  define RELAXED(p) ((__typeof__(*(p)))lapse_load((p), sizeof *(p), 0))
#  define PUBLISH(p, v) (lapse_store((p), sizeof *(p), 1), (void)(*(p) = (v)))
#  define STORE(p, v) (lapse_store((p), sizeof *(p), 0), (void)(*(p) = (v)))
#  define ADD(p, n) ((void)(*(p) += (n)))
#  define PUBLISH_ADD(p, n) ADD(p, n)
#  define FETCH_ADD64(p, n) (lapse_yield(), (*(p) += (n)) - (n))
#  define COMPARE_SWAP64(p, seen, v) (lapse_yield(), *(p) == (seen) ? (*(p) = (v), 1) : 0)
#  define READ_FENCE() lapse_read_fence()
#  define WRITE_FENCE() lapse_write_fence()
#  define FULL_FENCE() lapse_full_fence()
#  define PAUSE() lapse_wait()

#elif defined(__GNUC__) || defined(__clang__)
#  define ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#  define RELAXED(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#  define PUBLISH(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#  define STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#  define ADD(p, n) ((void)__atomic_fetch_add((p), (n), __ATOMIC_RELAXED))
#  define PUBLISH_ADD(p, n) ((void)__atomic_fetch_add((p), (n), __ATOMIC_RELEASE))
#  define FETCH_ADD64(p, n) __atomic_fetch_add((p), (n), __ATOMIC_RELAXED)
static inline int lapse_compare_swap64(uint64_t *p, uint64_t seen, uint64_t v) {
    return __atomic_compare_exchange_n(p, &seen, v, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
#  define COMPARE_SWAP64(p, seen, v) lapse_compare_swap64((p), (seen), (v))
#  define READ_FENCE() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#  define WRITE_FENCE() __atomic_thread_fence(__ATOMIC_RELEASE)
#  define FULL_FENCE() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#  if defined(__x86_64__) || defined(__i386__)
#    define PAUSE() __builtin_ia32_pause()
#  elif defined(__aarch64__)
#    define PAUSE() __asm__ __volatile__("yield")
#  else
#    define PAUSE() ((void)0)
#  endif

#elif defined(_MSC_VER)
/* MSVC: an aligned volatile access of up to 8 bytes is one instruction. On x64 the hardware already
 * gives acquire and release, so a compiler barrier is enough; on ARM64 a full barrier stands in. */
#  include <intrin.h>
#  if defined(_M_ARM64)
#    define LAPSE_BARRIER() __dmb(_ARM64_BARRIER_ISH)
#  else
#    define LAPSE_BARRIER() _ReadWriteBarrier()
#  endif
static __forceinline uint64_t lapse_after_load64(uint64_t v) {
    LAPSE_BARRIER();
    return v;
}
#  define RELAXED(p) (*(volatile __typeof__(*(p)) *)(p))
#  define ACQUIRE(p) ((__typeof__(*(p)))lapse_after_load64((uint64_t)RELAXED(p)))
#  define STORE(p, v) ((void)(*(volatile __typeof__(*(p)) *)(p) = (v)))
#  define PUBLISH(p, v)    \
      do {                 \
          LAPSE_BARRIER(); \
          STORE(p, v);     \
      } while (0)
#  define FETCH_ADD64(p, n) ((uint64_t)_InterlockedExchangeAdd64((volatile long long *)(p), (long long)(n)))
#  define ADD(p, n) ((void)FETCH_ADD64(p, n))
#  define PUBLISH_ADD(p, n) ADD(p, n)
static __forceinline int lapse_compare_swap64(uint64_t *p, uint64_t seen, uint64_t v) {
    return (uint64_t)_InterlockedCompareExchange64((volatile long long *)p, (long long)v, (long long)seen) ==
           seen;
}
#  define COMPARE_SWAP64(p, seen, v) lapse_compare_swap64((p), (seen), (v))
#  define READ_FENCE() LAPSE_BARRIER()
#  define WRITE_FENCE() LAPSE_BARRIER()
#  define FULL_FENCE() MemoryBarrier()
#  define PAUSE() YieldProcessor()
#else
#  error "lapse needs GCC, Clang or MSVC on a free-threaded build"
#endif

#if defined(__GNUC__) || defined(__clang__)
#  define LIKELY(x) __builtin_expect(!!(x), 1)
#  define UNLIKELY(x) __builtin_expect(!!(x), 0)
#  define PREFETCH(p) __builtin_prefetch((p))
#  define INLINE static inline __attribute__((always_inline))
#  define NOINLINE __attribute__((noinline))
#  if defined(__has_attribute) && __has_attribute(no_stack_protector)
#    define NO_CANARY __attribute__((no_stack_protector)) /* a hot function without arrays */
#  endif
#else
#  define LIKELY(x) (x)
#  define UNLIKELY(x) (x)
#  if defined(_MSC_VER) && defined(_M_X64)
#    include <intrin.h>
#    define PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#  else
#    define PREFETCH(p) ((void)(p))
#  endif
#  define INLINE static inline
#  define NOINLINE
#endif
#ifndef NO_CANARY
#  define NO_CANARY
#endif

#endif
