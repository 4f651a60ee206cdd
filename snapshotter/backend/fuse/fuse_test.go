package fuse_test

import (
	"log/slog"
	"testing"

	"github.com/damselfly-io/damselfly/snapshotter/backend"
	"github.com/damselfly-io/damselfly/snapshotter/backend/backendtest"
	"github.com/damselfly-io/damselfly/snapshotter/backend/fuse"
)

// logTo sends a log to the test's.
func logTo(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func TestSuite(t *testing.T) {
	all := keepers{by: map[string]*keeper{}}
	backendtest.Suite(t, func(t testing.TB, n *backendtest.Node) backend.Backend {
		b, err := fuse.New(fuse.Options{Filler: n.Filler, Keeper: all.of(n.Dir), Log: logTo(t)})
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}
