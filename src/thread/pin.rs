//! Code that threads call when they exit must be there when they do: a library that holds this
//! crate stays loaded once it was loaded, whoever closes it.
//!
//! Done while the library is loaded, by the thread that loads it and that has the loader's lock
//! anyway; where an allocation comes before that, at the first start of a thread. In the main
//! program's own code there is nothing to do.

#[cfg(all(target_os = "linux", not(target_env = "musl")))]
pub use glibc::is_pinned;

/// Whether this code stays. musl never unloads a library, and macOS none that has thread-locals.
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

    /// Whether this code stays. (Two threads that ask at once do the same twice: no harm.)
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

    /// Opens the library that this code is in once more, never to be closed.
    #[cold]
    fn pin() -> bool {
        let address = with_exposed_provenance::<c_void>(own_address());
        // SAFETY: zeros are a `Dl_info`.
        let mut info: libc::Dl_info = unsafe { core::mem::zeroed() };
        // SAFETY: an address, and a place that can be written.
        if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
            return false;
        }
        let flags = libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
        // SAFETY: the loader's own text. The library is loaded already: nothing of it runs.
        !unsafe { libc::dlopen(info.dli_fname, flags) }.is_null()
    }

    /// Whether this code lies in a segment of the main program: asked of the kernel, not of the
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
        // How far the program lies from where it was linked to: by what its headers say of
        // themselves, or else by the first segment, which begins with the file's header and these.
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
