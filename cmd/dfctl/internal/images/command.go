package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/artifact"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/content"
	"github.com/damselfly-io/damselfly/chunkfmt/merkle"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
	"github.com/damselfly-io/damselfly/internal/cli"
	"github.com/damselfly-io/damselfly/internal/image"
	"github.com/damselfly-io/damselfly/internal/imageindex"
)

// systemPolicy is the trust policy of the machine, used if it exists.
const systemPolicy = "/etc/damselfly/trust.yaml"

// group is what all image commands share.
type group struct {
	console *output.Console
	format  output.Format
}

// Command returns dfctl image.
func Command(console *output.Console) *cobra.Command {
	g := &group{console: console}
	cmd := &cobra.Command{
		Use:   groupName,
		Short: "Make, show, verify and export the indexes of images",
		Long: `Make, show, verify and export the indexes of images.

The index of an image lets nodes mount it before it has been fetched. It is an
artifact that refers to the image; the image itself and its name stay as they
are, and nodes without Damselfly pull it as ever.

Images are named HOST/REPO[:TAG|@DIGEST], oci:DIR[:TAG|@DIGEST],
docker-archive:FILE, or by a directory. Registries on loopback addresses are
spoken to over plain HTTP.

` + exit.Summary,
	}
	g.format.AddFlag(cmd.PersistentFlags())
	cmd.AddCommand(g.convertCommand(), g.inspectCommand(), g.verifyCommand(), g.diffCommand(), g.exportCommand(),
		g.mountCommand(), g.traceCommand(), enterCommand())
	return cmd
}

// reading are the flags of the commands that read the index of an image.
type reading struct {
	platform string
	policy   string
}

func (r *reading) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&r.platform, "platform", "", "`OS/ARCH[/VARIANT]` of the image (default this machine's, or the only one)")
	fs.StringVar(&r.policy, "trust", "", "`FILE` with the trust policy (default "+systemPolicy+" if there is one; your own key is always trusted)")
}

// subject is an image with its index.
type subject struct {
	*imageindex.Loaded
	source   *image.Source
	platform v1.Platform
	// desc is that of the image's manifest.
	desc v1.Descriptor
	// config of the image; nil if it is not there.
	config *v1.Image
}

// open finds and loads the index of the image that a reference names. The
// caller closes source.
func (g *group) open(ctx context.Context, r *reading, reference string) (*subject, error) {
	ref, err := image.Parse(reference)
	if err != nil {
		return nil, cli.Usagef("%w", err)
	}
	policy, err := r.loadPolicy(g.console.Getenv)
	if err != nil {
		return nil, err
	}
	var o image.Options
	if r.platform != "" {
		p, err := image.ParsePlatform(r.platform)
		if err != nil {
			return nil, cli.Usagef("--platform: %w", err)
		}
		o.Platforms = []v1.Platform{p}
	}
	src, err := image.Open(ctx, ref, o)
	if err != nil {
		return nil, withCode(err)
	}
	s, err := openSubject(ctx, src, policy)
	if err != nil {
		return nil, withCode(errors.Join(err, src.Close()))
	}
	return s, nil
}

func openSubject(ctx context.Context, src *image.Source, policy *trust.Policy) (*subject, error) {
	resolved, err := imageindex.Resolve(ctx, src, preferred)
	if err != nil {
		return nil, err
	}
	loaded, err := load(ctx, src, resolved, policy)
	if err != nil {
		return nil, err
	}
	return &subject{Loaded: loaded, source: src, platform: resolved.Platform, desc: resolved.Descriptor, config: resolved.Config}, nil
}

// load finds the index of an image or, where it has none, makes it of tables of
// contents that its layers have.
func load(ctx context.Context, src *image.Source, resolved *imageindex.Resolved, policy *trust.Policy) (*imageindex.Loaded, error) {
	found, err := imageindex.FindAny(ctx, src, resolved, policy)
	if err == nil {
		return imageindex.Load(ctx, src, found, chunkfmt.Limits{})
	}
	if !errors.Is(err, imageindex.ErrNoIndex) {
		return nil, err
	}
	loaded, tableErr := imageindex.FromTables(ctx, src, resolved)
	if errors.Is(tableErr, imageindex.ErrNoIndex) {
		return nil, fmt.Errorf("%w: make one with: dfctl image convert %s", err, src.Ref())
	}
	return loaded, tableErr
}

// index names an artifact, by its digest, for people.
func index(digest string) string {
	if digest == "" {
		return "none; its layers' own tables of contents are used"
	}
	return digest
}

// Trust says whether the index may be used, by the policy of this machine.
type Trust struct {
	Trusted bool   `json:"trusted"`
	Reason  string `json:"reason"` // bound, signed or unsigned; or why not
	Key     string `json:"key,omitempty"`
}

func (s *subject) trust() Trust {
	if s.Untrusted != nil {
		return Trust{Reason: s.Untrusted.Error()}
	}
	return Trust{Trusted: true, Reason: string(s.Verdict.Reason), Key: s.Verdict.Key}
}

func (t Trust) text() string {
	switch {
	case !t.Trusted:
		return "no: " + output.Clean(t.Reason)
	case t.Key != "":
		return "yes, " + t.Reason + " by key " + t.Key
	}
	return "yes, " + t.Reason
}

// preferred chooses this machine's platform among several.
func preferred(platforms []v1.Platform) (int, error) {
	if len(platforms) == 1 {
		return 0, nil
	}
	i := slices.IndexFunc(platforms, func(p v1.Platform) bool {
		return p.OS == runtime.GOOS && p.Architecture == runtime.GOARCH
	})
	if i < 0 {
		var names []string
		for _, p := range platforms {
			names = append(names, image.FormatPlatform(p))
		}
		return 0, cli.Usagef("the image has several platforms, none of them this machine's: choose one of %v with --platform", names)
	}
	return i, nil
}

// loadPolicy returns the policy of the flag or the machine, with the user's
// own key.
func (r *reading) loadPolicy(getenv func(string) string) (*trust.Policy, error) {
	var policy *trust.Policy
	file := r.policy
	if file == "" {
		// One that cannot be read must not count as none.
		if _, err := os.Stat(systemPolicy); !errors.Is(err, os.ErrNotExist) {
			file = systemPolicy
		}
	}
	if file != "" {
		p, err := trust.LoadPolicy(file)
		if err != nil {
			return nil, err
		}
		policy = p
	}
	name, err := trust.DefaultKeyFile(getenv)
	if err != nil {
		return policy, nil //nolint:nilerr // without a home there is no key
	}
	key, err := trust.Load(name)
	if errors.Is(err, os.ErrNotExist) {
		return policy, nil
	}
	if err != nil {
		return nil, err
	}
	return policy.With(key.Public())
}

// codes are the exit codes of errors. The first that fits counts.
var codes = []struct {
	code    int
	targets []error
}{
	{exit.Refused, []error{trust.ErrUntrusted}},
	{exit.Mismatch, []error{image.ErrCorrupt, artifact.ErrMismatch, content.ErrCorrupt, merkle.ErrMismatch, build.ErrMismatch}},
	{exit.Refused, []error{image.ErrDenied}},
	{exit.NotFound, []error{image.ErrNotFound, imageindex.ErrNoIndex, image.ErrNoPlatform}},
}

// withCode gives errors their exit codes.
func withCode(err error) error {
	for _, c := range codes {
		if slices.ContainsFunc(c.targets, func(target error) bool { return errors.Is(err, target) }) {
			return exit.With(c.code, err)
		}
	}
	return err
}
