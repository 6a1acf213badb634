//! Layer http.
