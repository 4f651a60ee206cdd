// Package indextest has what tests of images and their indexes share: small
// images, and a registry in the test's process that can be made to fail.
package indextest
