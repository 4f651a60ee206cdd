// Package backendtest has what every backend.Backend must do, as a test suite.
//
// The images are made with chunkfmt/build from tars, so that what the kernel
// shows is compared with what was put into the layers, by way of everything
// between: index, merge, devices and mount. Node and Image serve other tests of
// mounts as well.
package backendtest
