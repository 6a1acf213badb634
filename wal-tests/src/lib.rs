//! Tests of Wallaby from outside.
