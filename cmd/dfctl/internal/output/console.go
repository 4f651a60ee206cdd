package output

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// Console is everything a command uses of the process it runs in.
type Console struct {
	In       io.Reader
	Out, Err io.Writer
	// Width returns the columns of the terminal that Err is, and 0 if Err is
	// not a terminal.
	Width func() int
	// Now is the clock.
	Now func() time.Time
	// Getenv looks up the environment; "" is unset.
	Getenv func(string) string
}

// System returns the console of this process.
func System() *Console {
	return &Console{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Width:  func() int { return terminalWidth(os.Stderr) },
		Now:    time.Now,
		Getenv: os.Getenv,
	}
}

// terminalWidth returns the columns of the terminal f, and 0 if f is none.
func terminalWidth(f *os.File) int {
	const usual = 80 // for terminals that do not tell, such as serial lines
	fd := int(f.Fd())
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		return 0
	}
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return usual
	}
	return int(size.Col)
}

// Remarkf writes one line for people to Err.
func (c *Console) Remarkf(format string, args ...any) {
	// A remark that cannot be written must not fail what it is about.
	_, _ = fmt.Fprintf(c.Err, format+"\n", args...)
}

// Format is the value of -o.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
)

var _ pflag.Value = (*Format)(nil)

// AddFlag adds -o to a command, text by default.
func (f *Format) AddFlag(fs *pflag.FlagSet) {
	*f = Text
	fs.VarP(f, "output", "o", "text, or json for one JSON document")
}

// Set refuses all but the known formats.
func (f *Format) Set(s string) error {
	switch v := Format(s); v {
	case Text, JSON:
		*f = v
		return nil
	}
	return errors.New("use text or json")
}

func (f *Format) String() string { return string(*f) }

// Type names the flag's value in help texts.
func (f *Format) Type() string { return "format" }

// Print writes a result to Out: as a JSON document, or by calling text.
func (c *Console) Print(f Format, document any, text func(io.Writer) error) error {
	var err error
	if f == JSON {
		enc := json.NewEncoder(c.Out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		err = enc.Encode(document)
	} else {
		err = text(c.Out)
	}
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}
