//! Placeholder, replaced within the same series of commits.
