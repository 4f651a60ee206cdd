package images

import (
	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/internal/config"
)

// size is a flag such as 512KiB, in bytes.
type size config.Size

var _ pflag.Value = (*size)(nil)

// Set parses what the user wrote.
func (s *size) Set(text string) error {
	v, err := config.ParseSize(text)
	*s = size(v)
	return err
}

func (s *size) String() string { return config.Size(*s).String() }

// Type names the flag's value in help texts.
func (s *size) Type() string { return "size" }
