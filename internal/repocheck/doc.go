// Package repocheck holds tests about the repository itself: rules that a
// reader relies on and that neither the compiler nor a linter keeps. It has no
// code.
package repocheck
