//! The device as a driver sees it, on volumes of a real store.
