//! What reading a file takes: memory at its peak, time, and whether it panicked.

use mnemon::error::Result;
use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// All threads of the process are counted together, so one reader at a time is measured.
static ONE: Mutex<()> = Mutex::new(());
static PANICS: AtomicU64 = AtomicU64::new(0);

fn grown(by: usize) {
    PEAK.fetch_max(NOW.fetch_add(by, Relaxed) + by, Relaxed);
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

pub struct Taken {
    pub outcome: Result<()>,
    pub panicked: bool,
    pub bytes: usize,
    pub time: Duration,
}

/// Measures one call at a time, and ends the process where one does not end.
pub struct Meter {
    _one: MutexGuard<'static, ()>,
    /// When the call began, in milliseconds; 0 between calls.
    began: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    start: Instant,
}

impl Meter {
    /// `path` is what is named where a call takes `limit` four times.
    pub fn new(path: &Path, limit: Duration) -> Self {
        let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        PANICS.store(0, Relaxed);
        std::panic::set_hook(Box::new(|info| {
            let thread = std::thread::current();
            if thread.name() == Some("hdf5") {
                PANICS.fetch_add(1, Relaxed);
            } else {
                eprintln!("{info}");
            }
        }));
        let (began, over, start) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), Instant::now());
        let (seen, ended, path) = (Arc::clone(&began), Arc::clone(&over), path.to_path_buf());
        std::thread::spawn(move || {
            while !ended.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let began = seen.load(Relaxed);
                if began != 0 && start.elapsed().as_millis() as u64 > began + 4 * limit.as_millis() as u64 {
                    eprintln!("{}: it does not end", path.display());
                    std::process::exit(101);
                }
            }
        });
        Self { _one: one, began, over, start }
    }

    /// Calls `f`.
    pub fn take(&mut self, f: impl FnOnce() -> Result<()>) -> Taken {
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let start = Instant::now();
        self.began.store(self.start.elapsed().as_millis() as u64 + 1, Relaxed);
        let result = std::panic::catch_unwind(AssertUnwindSafe(f));
        self.began.store(0, Relaxed);
        let (time, bytes) = (start.elapsed(), PEAK.load(Relaxed).saturating_sub(before));
        let panicked = result.is_err();
        Taken { outcome: result.unwrap_or(Ok(())), panicked, bytes, time }
    }

    /// Panics of a library that its caller here made errors of.
    pub fn panics(&self) -> u64 {
        PANICS.load(Relaxed)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}
