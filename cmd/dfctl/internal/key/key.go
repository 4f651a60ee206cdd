package key

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

// group is what the key commands share.
type group struct {
	console *output.Console
	format  output.Format
}

// Command returns dfctl key.
func Command(console *output.Console) *cobra.Command {
	g := &group{console: console}
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make and show the key that signs the indexes of images",
		Long: `Make and show the key that signs the indexes of images.

Nodes use an index only if somebody vouches for it whom they trust. dfctl image
convert signs with this key, and makes it on first use; nodes trust it when its
public half (dfctl key export) is in their trust.keys.`,
	}
	g.format.AddFlag(cmd.PersistentFlags())
	cmd.AddCommand(g.createCommand(), g.showCommand(), g.exportCommand())
	return cmd
}

// Key is a signing key, as -o json prints it.
type Key struct {
	ID   string `json:"id"`
	File string `json:"file"` // of the private key
	// PublicKey is in PEM.
	PublicKey string `json:"public_key"`
}

func describe(k *trust.PrivateKey, file string) (*Key, error) {
	public, err := k.Public().MarshalPEM()
	if err != nil {
		return nil, err
	}
	return &Key{ID: k.ID(), File: file, PublicKey: string(public)}, nil
}

func (k *Key) write(w io.Writer) error {
	if err := output.WriteFields(w, [2]string{"id", k.ID}, [2]string{"file", k.File}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s", k.PublicKey)
	return err
}

// source is the file of a private key.
type source struct{ file string }

func (s *source) addFlag(fs *pflag.FlagSet, name string) {
	fs.StringVar(&s.file, name, "", "`FILE` of the private key (default $XDG_CONFIG_HOME/damselfly/key.pem, or in ~/.config)")
}

func (s *source) name(console *output.Console) (string, error) {
	if s.file != "" {
		return s.file, nil
	}
	return trust.DefaultKeyFile(console.Getenv)
}

func (s *source) load(console *output.Console) (*Key, error) {
	file, err := s.name(console)
	if err != nil {
		return nil, err
	}
	k, err := trust.Load(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, exit.With(exit.NotFound, fmt.Errorf("there is no key %s: make one with dfctl key create", file))
	}
	if err != nil {
		return nil, err
	}
	return describe(k, file)
}

func (g *group) createCommand() *cobra.Command {
	var out source
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a key, which only you can read",
		Example: `  dfctl key create
  dfctl key create --out ci.pem`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			file, err := out.name(g.console)
			if err != nil {
				return err
			}
			k, err := trust.Create(file)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s exists and is left alone: show it with dfctl key show --key %[1]s, or name another file with --out", file)
			}
			if err != nil {
				return err
			}
			document, err := describe(k, file)
			if err != nil {
				return err
			}
			return g.console.Print(g.format, document, document.write)
		},
	}
	out.addFlag(cmd.Flags(), "out")
	return cmd
}

func (g *group) showCommand() *cobra.Command {
	var from source
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show a key's ID, file and public half",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			k, err := from.load(g.console)
			if err != nil {
				return err
			}
			return g.console.Print(g.format, k, k.write)
		},
	}
	from.addFlag(cmd.Flags(), "key")
	return cmd
}

// Exported says where the public half of a key is, as -o json prints it.
type Exported struct {
	Key

	PublicFile string `json:"public_file,omitempty"`
}

func (g *group) exportCommand() *cobra.Command {
	var from source
	var out string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Print the public half of a key, for the nodes that are to trust it",
		Example: `  dfctl key export >ci.pem
  dfctl key export --key ci-private.pem --out /etc/damselfly/keys/ci.pem`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			k, err := from.load(g.console)
			if err != nil {
				return err
			}
			if out != "" {
				if err := writePublic(out, []byte(k.PublicKey)); err != nil {
					return fmt.Errorf("export key %s: %w", k.ID, err)
				}
			}
			document := &Exported{Key: *k, PublicFile: out}
			return g.console.Print(g.format, document, document.write)
		},
	}
	from.addFlag(cmd.Flags(), "key")
	cmd.Flags().StringVar(&out, "out", "", "`FILE` to write instead of standard output; it must not exist yet")
	return cmd
}

func (e *Exported) write(w io.Writer) error {
	if e.PublicFile == "" {
		_, err := io.WriteString(w, e.PublicKey)
		return err
	}
	return output.WriteFields(w, [2]string{"id", e.ID}, [2]string{"written to", e.PublicFile})
}

// writePublic writes a file, and is content with one that has the same
// content. It replaces nothing: the name could be that of the private key.
func writePublic(file string, data []byte) error {
	const mode = 0o644
	err := trust.WriteNew(file, data, mode)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if old, readErr := os.ReadFile(file); readErr == nil && bytes.Equal(old, data) {
		return nil
	}
	return fmt.Errorf("%s exists with other content and is left alone: name another file", file)
}
