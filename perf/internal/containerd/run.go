package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Started is how a container ran.
type Started struct {
	// Output is what its command printed on standard output.
	Output string
	// First is the time from the start of ctr until the first byte of Output.
	First time.Duration
}

// Run runs a command in a new container of an image, which has been pulled, and
// removes the container. A command that fails is an error.
func (d *Daemon) Run(ctx context.Context, ref, id string, command []string) (Started, error) {
	args := append([]string{"run", "--rm", "--snapshotter", d.o.snapshotter(), ref, id}, command...)
	cmd := d.command(ctx, args...)
	out := &firstByte{}
	var complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &complaint
	out.begin = time.Now()
	err := cmd.Run()
	s := Started{Output: out.text.String(), First: out.first}
	if err == nil && out.text.Len() == 0 {
		err = errors.New("it printed nothing")
	}
	if err != nil {
		return s, fmt.Errorf("run %s in %s: %w: %s", strings.Join(command, " "), ref, err, bytes.TrimSpace(complaint.Bytes()))
	}
	return s, nil
}

// firstByte keeps what is written and when that began. It is read after the
// writer has ended.
type firstByte struct {
	begin time.Time
	first time.Duration
	text  bytes.Buffer
}

var _ io.Writer = (*firstByte)(nil)

func (f *firstByte) Write(p []byte) (int, error) {
	if f.text.Len() == 0 && len(p) > 0 {
		f.first = time.Since(f.begin)
	}
	return f.text.Write(p)
}
