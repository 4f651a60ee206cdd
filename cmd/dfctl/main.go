// Command dfctl is what people and scripts use of Damselfly: it downloads and
// preheats content, shows and prunes what nodes hold, and sets nodes up. Called
// as dfget it is "dfctl get".
//
// Every command prints for people, or one JSON document with -o json, and exits
// with 0 only on success; package exit lists the other codes.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// As in internal/cli: a second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args, output.System()))
}
