package get

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
)

const long = `Download a URL through this node's dfdaemon into a file.

The content comes from other nodes where they have it, and leaves the origin
once. FILE appears when it is complete; until then it is .FILE.dfget-part in
the same directory. Run the same command again after an interruption: it
continues, unless the content at the URL has changed since.

With --sha256 the content is verified, and nodes that know it by that digest
share it whatever URL it came from. With -O - the content goes to standard
output, and a mismatch shows only in the exit code, after the content.

` + exit.Summary

// Command returns the command under the given name: dfctl's get, or dfget.
func Command(console *output.Console, name string) *cobra.Command {
	f := &flags{}
	var target daemon.Target
	full := name
	if name == "get" {
		full = "dfctl get"
	}
	cmd := &cobra.Command{
		Use:   name + " URL",
		Short: "Download a URL through the cluster",
		Long:  long,
		Example: strings.ReplaceAll(`  GET https://example.com/model.bin
  GET https://example.com/model.bin -O /srv/model.bin --sha256 9f86d081…
  GET https://example.com/data.tar -O - | tar -x`, "GET", full),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request(args[0])
			if err != nil {
				return cli.Usagef("%w", err)
			}
			return f.run(cmd.Context(), console, target, req)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVarP(&f.file, "output-document", "O", "", "`FILE` to write to, - for standard output (default: the URL's last path element)")
	fs.StringVar(&f.sha256, "sha256", "", "SHA-256 that the content must have, in `HEX`")
	fs.StringArrayVar(&f.headers, "header", nil, "header `'NAME: VALUE'` to send to the origin; repeatable")
	fs.StringVar(&f.priority, "priority", "demand", "`PRIORITY` in the cluster: demand, prefetch or preheat")
	fs.DurationVar(&f.timeout, "timeout", 0, "give up after this long, such as 10m (default: never)")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "no progress")
	target.AddFlag(fs, console.Getenv)
	f.format.AddFlag(fs)
	return cmd
}

func (f *flags) run(ctx context.Context, console *output.Console, target daemon.Target, req *request) (err error) {
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
		defer func() {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("get %s: not done within --timeout %v", req.name, f.timeout)
			}
		}()
	}
	client, err := target.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	d := &download{req: req, console: console, client: client}
	if req.file == stdout {
		return d.toStdout(ctx)
	}
	res, err := d.toFile(ctx)
	if err != nil {
		return err
	}
	return console.Print(f.format, res, res.text)
}

// text writes the result for people.
func (r *Result) text(w io.Writer) error {
	line := fmt.Sprintf("%s: %s in %.1fs", output.Clean(r.File), output.Bytes(r.Bytes), r.Seconds)
	if fetched := float64(r.Bytes - r.Resumed); r.Seconds > 0 && fetched > 0 {
		line += fmt.Sprintf(" (%s/s)", output.Bytes(int64(fetched/r.Seconds)))
	}
	if from := r.From; from != nil {
		line += ", " + from.text()
	}
	_, err := fmt.Fprintf(w, "%s\nsha256:%s\n", line, r.SHA256)
	return err
}

func (f *From) text() string {
	var parts []string
	for _, s := range []struct {
		name  string
		bytes int64
	}{{"peers", f.Peers}, {"the supernode", f.Supernode}, {"the origin", f.Origin}} {
		if s.bytes > 0 {
			parts = append(parts, output.Bytes(s.bytes)+" from "+s.name)
		}
	}
	if len(parts) == 0 {
		return "all from this node's cache"
	}
	return strings.Join(parts, ", ")
}
