package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/damselfly-io/damselfly/perf/internal/ownership"
)

const (
	namespaceDir = "/run/netns"
	// kind of the namespaces, as package ownership names things.
	kind = "lab"
)

// removeStale removes what labs of processes that died have left.
func removeStale(ctx context.Context) error {
	entries, err := os.ReadDir(namespaceDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for old network labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	var errs []error
	for _, ns := range ownership.Left(kind, names) {
		err := removeNamespace(ctx, ns)
		if _, statErr := os.Stat(namespaceDir + "/" + ns); errors.Is(statErr, os.ErrNotExist) {
			err = nil // another run was faster
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
