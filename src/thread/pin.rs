//! Code that threads run when they exit must still be there when they do: a library that contains
//! this crate stays loaded once it has been loaded, no matter who closes it.
//!
//! This is done while the library is being loaded, by the thread that loads it, which has the
//! loader's lock anyway; or, if an allocation comes before that, when a thread first starts. The
//! main program's own code needs nothing.

#[cfg(all(target_os = "linux", not(target_env = "musl")))]
pub use glibc::is_pinned;

/// Whether this code stays loaded. musl never unloads a library, and macOS none with thread-locals.
#[cfg(not(all(target_os = "linux", not(target_env = "musl"))))]
pub fn is_pinned() -> bool {
    true
}

#[cfg(all(target_os = "linux", not(target_env = "musl")))]
mod glibc {
    use crate::base::sync::{AtomicU8, Ordering};
    use core::ffi::c_void;
    use core::ptr::with_exposed_provenance;

    const UNKNOWN: u8 = 0;
    const PINNED: u8 = 1;
    const REFUSED: u8 = 2;

    static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);

    #[used]
    #[cfg(not(miri))]
    #[unsafe(link_section = ".init_array")]
    static AT_LOAD: extern "C" fn() = at_load;

    extern "C" fn at_load() {
        is_pinned();
    }

    /// Pins this code on the first call; returns whether it stays loaded. (Two threads that call
    /// this at once both do the work: no harm.)
    pub fn is_pinned() -> bool {
        match STATE.load(Ordering::Relaxed) {
            PINNED => true,
            REFUSED => false,
            _ => {
                let is_pinned = cfg!(miri) || is_in_main_program() || pin();
                STATE.store(if is_pinned { PINNED } else { REFUSED }, Ordering::Relaxed);
                is_pinned
            }
        }
    }

    fn own_address() -> usize {
        is_pinned as fn() -> bool as usize
    }

    /// Opens the library that contains this code once more, never to close it.
    #[cold]
    fn pin() -> bool {
        let address = with_exposed_provenance::<c_void>(own_address());
        // SAFETY: zeros are a valid `Dl_info`.
        let mut info: libc::Dl_info = unsafe { core::mem::zeroed() };
        // SAFETY: any address will do, and `info` is writable.
        if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
            return false;
        }
        let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
        // SAFETY: the name is the loader's own. The library is loaded already, so none of its code
        // runs.
        !unsafe { libc::dlopen(info.dli_fname, flags) }.is_null()
    }

    /// Whether this code lies in a segment of the main program, according to the kernel and not the
    /// loader.
    fn is_in_main_program() -> bool {
        // SAFETY: always callable.
        let (table, count) =
            unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
        let table_address = table as usize;
        if table_address == 0 {
            return false;
        }
        // SAFETY: the kernel says where the program's headers are, and how many; nobody changes
        // them.
        let headers = unsafe {
            core::slice::from_raw_parts(
                with_exposed_provenance::<libc::Elf64_Phdr>(table_address),
                count as usize,
            )
        };
        // How far the program lies from the address it was linked for: by what its headers say of
        // themselves, else by the first segment, which begins with the file's header and these
        // headers.
        let of_itself = headers
            .iter()
            .find(|header| header.p_type == libc::PT_PHDR)
            .map(|header| header.p_vaddr as usize);
        let of_first = headers
            .iter()
            .find(|header| header.p_type == libc::PT_LOAD && header.p_offset == 0)
            .map(|header| header.p_vaddr as usize + size_of::<libc::Elf64_Ehdr>());
        let Some(linked_address) = of_itself.or(of_first) else { return false };
        let distance = table_address.wrapping_sub(linked_address);
        headers.iter().filter(|header| header.p_type == libc::PT_LOAD).any(|header| {
            let start = (header.p_vaddr as usize).wrapping_add(distance);
            own_address().wrapping_sub(start) < header.p_memsz as usize
        })
    }
}
