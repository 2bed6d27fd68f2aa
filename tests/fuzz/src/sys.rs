//! The one place with `unsafe`: an allocator that counts what the thread that is metered holds.
//!
//! Allocations go to the system's allocator. A metered thread that would hold more than [`CEILING`] is not given the memory: it is
//! put to sleep for ever, and [`refused`] says how much it wanted. (To unwind out of an allocator is undefined, to return null ends
//! the process; a sleeping thread leaves the rest able to say which input it was.)
#![expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; each function passes its arguments on to System unchanged"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a metered thread may hold, bytes; far above every target's budget, far below what this machine has.
const CEILING: isize = 1 << 30;

static REFUSED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    // Const and without a destructor: reading it allocates nothing and works until the thread's end.
    static METER: Cell<Meter> = const { Cell::new(Meter { armed: false, live: 0, peak: 0 }) };
}

#[derive(Clone, Copy)]
struct Meter {
    armed: bool,
    live: isize,
    peak: isize,
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Notes that this thread holds `change` bytes more.
fn note(change: isize) {
    let over = METER.with(|meter| {
        let mut now = meter.get();
        if !now.armed {
            return 0;
        }
        now.live += change;
        if now.live > CEILING {
            return now.live;
        }
        now.peak = now.peak.max(now.live);
        meter.set(now);
        0
    });
    if over > 0 {
        REFUSED.store(over.unsigned_abs(), Ordering::SeqCst);
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

fn signed(size: usize) -> isize {
    isize::try_from(size).unwrap_or(isize::MAX)
}

// SAFETY: every function hands its arguments to System as they came and gives back what System gave; noting neither allocates nor
// unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(signed(layout.size()));
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(signed(layout.size()));
        // SAFETY: as in alloc.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-signed(layout.size()));
        // SAFETY: as in alloc; the pointer came from System.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(signed(size) - signed(layout.size()));
        // SAFETY: as in dealloc.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs `work` and says how many bytes more than before this thread held at most.
pub fn metered<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let meter = |armed| Meter {
        armed,
        live: 0,
        peak: 0,
    };
    METER.set(meter(true));
    let made = work();
    let peak = METER.replace(meter(false)).peak;
    (made, peak.unsigned_abs())
}

/// How many bytes a thread wanted to hold that was refused them; 0: none was.
pub fn refused() -> usize {
    REFUSED.load(Ordering::SeqCst)
}
