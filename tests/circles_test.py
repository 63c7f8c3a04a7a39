#!/usr/bin/env python3
"""Tests of tests/circles.py on small crates."""

import tempfile
import unittest
from pathlib import Path

import circles

MAP = "//! | module | what |\n//! |---|---|\n//! | [`a`] | first |\n//! | [`b`] | second |\npub mod a;\npub mod b;\n"


class Circles(unittest.TestCase):
    def report(self, **files):
        """The report on a crate of these files; `__` in a name is a folder."""
        with tempfile.TemporaryDirectory() as work:
            src = Path(work, "src")
            for name, text in {"lib": MAP, "a": "", "b": "", **files}.items():
                file = src / (name.replace("__", "/") + ".rs")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            return circles.report(circles.Tree(src))

    def assert_circle(self, *edges, **files):
        report = self.report(**files)
        for edge in edges:
            self.assertIn(f"  {edge}", report)

    def assert_none(self, **files):
        self.assertEqual(self.report(**files), [])

    def test_a_use_in_both_directions_is_a_circle(self):
        self.assert_circle(
            "src/a.rs:2 uses crate::b::B of src/b.rs",
            "src/b.rs:1 uses crate::a::A of src/a.rs",
            a="pub struct A;\nuse crate::b::B;\n",
            b="use crate::a::{self, A};\npub struct B;\n",
        )

    def test_one_direction_is_none(self):
        self.assert_none(a="pub struct A;", b="use crate::a::A;\npub struct B(A);")

    def test_a_path_in_code_counts(self):
        self.assert_circle(
            "src/a.rs:1 uses crate::b::call of src/b.rs",
            a="pub fn a() { crate::b::call(1) }",
            b="pub fn call(_: u8) { crate::a::a() }",
        )

    def test_a_path_in_a_macro_and_one_in_an_attribute_count(self):
        self.assert_circle(
            "src/a.rs:1 uses crate::b::B of src/b.rs",
            "src/b.rs:1 uses crate::a::with of src/a.rs",
            a='pub fn with() { debug!(x = %crate::b::B, "text") }',
            b='pub struct B { #[serde(with = "crate::a::with")] field: u8 }',
        )

    def test_a_module_that_was_imported_is_followed(self):
        self.assert_circle(
            "src/a.rs:2 uses b::B of src/b.rs", a="use crate::b;\npub fn a() -> b::B { b::B }", b="use crate::a::a;\npub struct B;"
        )

    def test_a_reexport_leads_to_the_definition(self):
        self.assert_circle(
            "src/a/inner.rs:1 uses crate::b::B of src/b.rs",
            "src/b.rs:1 uses crate::a::Inner of src/a/inner.rs",
            a="mod inner;\npub use inner::Inner;",
            a__inner="use crate::b::B;\npub struct Inner;",
            b="use crate::a::Inner;\npub struct B;",
        )

    def test_a_parent_may_reexport_what_its_child_defines(self):
        self.assert_none(a="mod inner;\npub use inner::Inner;\npub struct A;", a__inner="use super::A;\npub struct Inner;")

    def test_a_parent_that_uses_what_it_reexports_depends_on_its_child(self):
        self.assert_circle(
            "src/a.rs:3 uses Inner of src/a/inner.rs",
            a="mod inner;\npub use inner::Inner;\npub struct A(Inner);",
            a__inner="use super::A;\npub struct Inner;",
        )

    def test_a_name_from_a_glob_counts_where_it_is_used(self):
        self.assert_circle(
            "src/a/inner.rs:2 uses A of src/a.rs",
            a="mod inner;\npub struct A(inner::Inner);",
            a__inner="use super::*;\npub struct Inner(Vec<A>);",
        )
        self.assert_none(a="mod inner;\npub struct A(inner::Inner);", a__inner="use super::*;\npub struct Inner(Other);")

    def test_test_code_does_not_count(self):
        self.assert_none(
            a="pub struct A;\n#[cfg(test)]\nmod tests { use crate::b::B; }\n#[cfg(test)]\nuse crate::b::B;\nimpl A { #[cfg(test)] fn b() -> crate::b::B {} }",
            b="use crate::a::A;\npub struct B;",
        )

    def test_code_after_test_code_counts(self):
        self.assert_circle(
            "src/a.rs:3 uses crate::b::B of src/b.rs",
            a="#[cfg(test)]\nfn test() -> [u8; 2] {}\nuse crate::b::B; pub struct A;",
            b="use crate::a::A;\npub struct B;",
        )

    def test_comments_texts_and_lifetimes_are_no_code(self):
        self.assert_none(
            a="pub struct A; // crate::b::B\n/* /* */ crate::b::B */ fn a<'a>(x: &'a str) { (r#\"\" crate::b::B\"#, '\"', \"crate::b::B\"); }",
            b="use crate::a::A;\npub struct B;",
        )

    def test_what_a_macro_defines_belongs_to_the_file_of_the_call(self):
        self.assert_circle(
            "src/a.rs:1 uses crate::b::Made of src/b.rs", a="use crate::b::Made; pub struct A;", b="use crate::a::A;\nname! { Made }"
        )

    def test_a_circle_of_three_is_found(self):
        report = self.report(
            a="mod x;\nmod y;\nuse x::X;\npub struct A;", a__x="use super::y::Y;\npub struct X;", a__y="use crate::a::A;\npub struct Y;"
        )
        self.assertEqual(report[0], "circle of 3 files:")

    def test_the_map_must_be_true(self):
        late = "src/a.rs:1: `a` uses `crate::b::B`, but the map names `b` after `a`"
        self.assertEqual(self.report(a="use crate::b::B;", b="pub struct B;"), [late])
        self.assertEqual(self.report(lib=MAP + "mod c;", c=""), ["src/lib.rs: the map does not name `c`"])
        self.assertEqual(self.report(lib=MAP.replace("mod b;", "")), ["src/lib.rs: the map names `b`, which is not a module"])


if __name__ == "__main__":
    unittest.main()
