#!/bin/bash
# Capture: publishes one source's frames as JPEG files, each complete when its name appears. capture.sh --help
#
# Settings come from flags, else from the environment. FFmpeg then takes this process's place (exec): its pid is this
# one, so whoever started this script watches, stops and kills FFmpeg itself.
#
# How files become complete:
#   DIR/capture_000000001.jpg            by rename (IN_MOVED_TO), from NAME.tmp: FFmpeg's -atomic_writing
#   DIR/capture_000000001_thumbnail.jpg  likewise; same number, same picture, but not always after its frame
#   DIR/audio/audio_000000001.wav        by close (IN_CLOSE_WRITE): FFmpeg's segment muxer cannot rename. A chunk is
#                                        closed when 50 ms of the next second have come; until then, and for ever in a
#                                        chunk that FFmpeg was killed in, its header gives sizes of 0xFFFFFFFF
#   DIR/hls/live.m3u8, live_*.ts         by rename, segments before the playlist: -hls_flags temp_file
# Chunks and HLS have directories of their own, so that neither wakes those who wait for frames.
#
# DIR is locked (flock) as long as FFmpeg lives, which inherits the lock on descriptor 9: two captures would overwrite
# each other's numbers. No frame, thumbnail or chunk is ever deleted here.
#
# A URL's password is masked in all that is logged, FFmpeg's own messages included. `ps` shows it while FFmpeg runs,
# which takes URLs on its command line only.
set -euo pipefail

profiles='v4l2-copy v4l2-encode x11grab rtsp file url lavfi'
declare -A setting=(
    [profile]=${CAPTURE_PROFILE-} [input]=${CAPTURE_INPUT-} [dir]=${CAPTURE_DIR-} [prefix]=${CAPTURE_PREFIX-capture_}
    [fps]=${CAPTURE_FPS-} [input-fps]=${CAPTURE_INPUT_FPS-} [size]=${CAPTURE_SIZE-} [quality]=${CAPTURE_QUALITY-}
    [rtsp-transport]=${CAPTURE_RTSP_TRANSPORT-} [audio-input]=${CAPTURE_AUDIO_INPUT-} [first]=${CAPTURE_FIRST-}
    [duration]=${CAPTURE_DURATION-} [ffmpeg]=${CAPTURE_FFMPEG-ffmpeg} [log-level]=${CAPTURE_LOG_LEVEL-warning}
)
declare -A wanted=(
    [copy]=${CAPTURE_COPY-} [live]=${CAPTURE_LIVE-} [thumbnails]=${CAPTURE_THUMBNAILS-} [hls]=${CAPTURE_HLS-}
    [audio]=${CAPTURE_AUDIO-} [dry-run]=${CAPTURE_DRY_RUN-}
)
# FFmpeg and what else is started here takes its word from command lines: in no environment of theirs is a URL with a
# password, nor what whoever calls this keeps in his own.
unset -- "${!CAPTURE_@}" "${!STILLWATCH_@}" "${!CLOUDFLARE_@}" CREDENTIALS_DIRECTORY

help() {
    cat <<'HELP'
usage: capture.sh --profile PROFILE --input INPUT --dir DIR [OPTION...]

Captures one source with one FFmpeg and publishes its frames in DIR as capture_000000001.jpg, capture_000000002.jpg ...,
each complete when its name appears. Numbers go on after the highest in DIR. Runs until FFmpeg ends or is stopped
(SIGTERM); its pid is FFmpeg's.

profiles, and what INPUT is for each
  v4l2-copy    a USB grabber's device. Publishes the JPEGs that it delivers, without decoding: by far the cheapest
  v4l2-encode  the device of a grabber that delivers no MJPEG
  x11grab      an X display such as :1 or :1.0+100,50, which is how to see a VNC desktop (default: $DISPLAY)
  rtsp         an rtsp:// URL
  file         a recording, played in real time and looped
  url          the URL of a recording, likewise; with --live that of a live stream
  lavfi        a graph of FFmpeg's test sources, or scene:NAME[:FROM-TO]: a test picture with a fault from second FROM
               to TO (6-12): freeze, black, silence, no-signal, bars; or without one: live

options, each with the variable that says the same in the environment (switches: 1 or 0); flags go first
  --profile PROFILE    CAPTURE_PROFILE
  --input INPUT        CAPTURE_INPUT           the better place for a URL with a password
  --dir DIR            CAPTURE_DIR             where to publish; must exist; in memory (tmpfs) if at all possible
  --prefix TEXT        CAPTURE_PREFIX          of the frames' names (capture_)
  --first N            CAPTURE_FIRST           begin no lower than this number (1)
  --fps N              CAPTURE_FPS             frames per second to publish (5; x11grab 2). Frames are left out, never
                                               repeated: a slower source stays slower. 0: every frame
  --input-fps N        CAPTURE_INPUT_FPS       v4l2: what to ask the device for (its own choice)
  --size WxH           CAPTURE_SIZE            v4l2, x11grab, scenes: what to ask for (its own choice; all; 1280x720)
  --copy               CAPTURE_COPY            rtsp, file, url: the stream is MJPEG, publish its JPEGs as they are
  --live               CAPTURE_LIVE            url: take frames as they come and do not loop
  --rtsp-transport T   CAPTURE_RTSP_TRANSPORT  tcp or udp (tcp)
  --quality Q          CAPTURE_QUALITY         of the JPEGs where frames are encoded: 2 (best) to 31 (4)
  --thumbnails         CAPTURE_THUMBNAILS      also NAME_thumbnail.jpg, 320 wide: decodes every frame. Of a copied frame
                                               that cannot be decoded there is none, and later ones get smaller numbers
  --hls                CAPTURE_HLS             also a live stream, DIR/hls/live.m3u8: 640x360, segments of 1 s, with
                                               sound if there is any: decodes every frame, and libx264 is not cheap
  --audio              CAPTURE_AUDIO           also sound, DIR/audio/audio_000000001.wav ...: chunks of 1 s, 16 bit PCM,
                                               16 kHz, all channels. There must be sound, else FFmpeg ends
  --audio-input SPEC   CAPTURE_AUDIO_INPUT     where sound comes from (INPUT): alsa:DEVICE, pulse:DEVICE, lavfi:GRAPH
  --duration S         CAPTURE_DURATION        end after so many seconds of the source
  --ffmpeg PROGRAM     CAPTURE_FFMPEG          which FFmpeg (ffmpeg): 5.1 or newer. 4.2 to 5.0 work, with a warning:
                                               on a full disk they may publish truncated frames
  --log-level LEVEL    CAPTURE_LOG_LEVEL       FFmpeg's (warning)
  --dry-run            CAPTURE_DRY_RUN         print FFmpeg's command line and do nothing

To stderr go FFmpeg's command line at the start and whatever FFmpeg says, a URL's password masked.

exit codes
  64  a flag or a value is wrong            66  the device or the recording is not there
  69  FFmpeg is not installed, or silent    75  another capture publishes in DIR
  78  it cannot work like this: FFmpeg has no atomic_writing, DIR is missing or read-only, numbers are used up
  any other is FFmpeg's own (255 after SIGTERM; FFmpeg 7.0 may take a second SIGTERM to end a loop)

examples
  capture.sh --profile v4l2-copy --dir /srv/frames/stb1 --size 1280x720 --audio --audio-input alsa:hw:CARD=MS2109 \
             --input /dev/v4l/by-path/platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.2:1.0-video-index0
  capture.sh --profile x11grab --input :1 --dir /srv/frames/desktop --hls
  CAPTURE_INPUT=rtsp://user:password@camera/stream capture.sh --profile rtsp --dir /srv/frames/hall --audio
  mkdir /dev/shm/try; capture.sh --profile lavfi --input scene:freeze:10-60 --dir /dev/shm/try
A name below /dev/v4l/by-path tells the USB port, so it stays the same however often the grabber is unplugged.
HELP
}

say() { printf 'capture.sh: %s\n' "$*" >&2; }
die() { say "${@:2}"; exit "$1"; }   # die CODE TEXT...

# --- settings --------------------------------------------------------------------------------------------------------

read_flags() {
    local name
    while (($#)); do
        name=${1%%[=:]*} name=${name#--}   # no further: what was forgotten to be named may hold a password
        if [[ $1 == --help || $1 == -h ]]; then
            help
            exit 0
        elif [[ $1 != --* || " ${!setting[*]} ${!wanted[*]} " != *" $name "* ]]; then
            die 64 "${name@Q}: no such option; see capture.sh --help"
        elif [[ " ${!wanted[*]} " == *" $name "* ]]; then
            [[ $1 != *=* ]] || die 64 "--$name takes no value"
            wanted[$name]=1
        elif [[ $1 == *=* ]]; then
            setting[$name]=${1#*=}
        else
            (($# > 1)) || die 64 "--$name needs a value"
            setting[$name]=$2
            shift
        fi
        shift
    done
}

# must_match NAME PATTERN HINT: the setting is empty, or of this form.
must_match() {
    local value
    value=$(masked "${setting[$1]}")
    [[ -z ${setting[$1]} || ${setting[$1]} =~ ^($2)$ ]] || die 64 "--$1 ${value@Q}: must be $3"
}

# only_for NAME PROFILE...: the option was not given, or the profile is one of these.
only_for() {
    [[ -z ${setting[$1]-}${wanted[$1]-} || " ${*:2} " == *" $profile "* ]] ||
        die 64 "--$1 has no meaning for $profile; it is for ${*:2}"
}

check_settings() {
    local name number='[0-9]{1,5}(\.[0-9]{1,3})?'
    for name in "${!setting[@]}"; do
        [[ ${setting[$name]} != *[[:cntrl:]]* ]] || die 64 "--$name: has a control character; leave it out"
    done
    for name in "${!wanted[@]}"; do
        [[ ${wanted[$name]} == [01] || -z ${wanted[$name]} ]] || die 64 "--$name: its variable must be 1 or 0"
        wanted[$name]=${wanted[$name]#0}
    done
    must_match profile "${profiles// /|}" "one of $profiles"
    must_match fps "$number" 'a number of frames per second, or 0 for every frame'
    must_match input-fps "$number" 'a number of frames per second'
    must_match size '[1-9][0-9]{0,4}x[1-9][0-9]{0,4}' 'WIDTHxHEIGHT, such as 1280x720'
    must_match rtsp-transport 'tcp|udp' 'tcp or udp'
    must_match quality '[2-9]|[12][0-9]|3[01]' 'from 2 (best) to 31'
    must_match audio-input '(alsa|pulse|lavfi):.+' 'alsa:DEVICE, pulse:DEVICE or lavfi:GRAPH'
    must_match first '[0-9]{1,9}' 'a number up to 999999999'
    must_match duration "$number" 'a number of seconds'
    must_match prefix '[^/]*' 'part of a file name, without /'
    must_match log-level '[a-z0-9+]+' "one of FFmpeg's, such as error, warning or info"

    profile=${setting[profile]}
    [[ $profile != x11grab || -n ${setting[input]} ]] || setting[input]=${DISPLAY-}
    for name in profile input dir; do
        [[ -n ${setting[$name]} ]] || die 64 "--$name is missing; see capture.sh --help"
    done
    only_for size v4l2-copy v4l2-encode x11grab lavfi
    only_for input-fps v4l2-copy v4l2-encode
    only_for copy rtsp file url
    only_for live url
    only_for rtsp-transport rtsp
    [[ $profile != v4l2-copy ]] || wanted[copy]=1
    [[ -z ${wanted[copy]} || -z ${setting[quality]} ]] || die 64 "--quality has no meaning where frames are copied"
    [[ -z ${wanted[audio]} || -n ${setting[audio-input]} || $profile != @(v4l2-*|x11grab) ]] ||
        die 64 "--audio: $profile has no sound of its own; say where it comes from, as in --audio-input alsa:hw:1"
    [[ -z ${setting[audio-input]} || -n ${wanted[audio]}${wanted[hls]} ]] ||
        die 64 "--audio-input: nothing is made of the sound; add --audio or --hls"

    fps=${setting[fps]:-5}
    [[ $profile != x11grab || -n ${setting[fps]} ]] || fps=2
    [[ ! $fps =~ ^[0.]+$ ]] || fps=0
    [[ $profile != x11grab || $fps != 0 ]] || die 64 "--fps 0: a display has no rate of its own; say how often to look"
}

check_directory() {
    dir=$(absolute "${setting[dir]}")
    [[ -d $dir ]] || die 78 "${dir@Q}: no such directory; make it, in memory if possible: mkdir -p ${dir@Q}"
    [[ -w $dir && -x $dir ]] || die 78 "${dir@Q}: cannot be written by user $EUID; change its owner or its mode"
    # To FFmpeg's HLS muxer % begins a pattern, and there is no way to write the character itself.
    [[ -z ${wanted[hls]} || $dir != *%* ]] ||
        die 78 "${dir@Q}: HLS cannot be written below a name with %; use another, or leave out --hls"
}

# --- what there is ---------------------------------------------------------------------------------------------------

# absolute PATH: so that neither a colon nor a dash in it means anything to FFmpeg.
absolute() { if [[ $1 == /* ]]; then printf '%s' "$1"; else printf '%s' "$PWD/$1"; fi; }

# find_ffmpeg: sets $ffmpeg, and $version to libavformat's: builds from git have no other number.
find_ffmpeg() {
    local answer code=0 name=${setting[ffmpeg]}
    ffmpeg=$(type -P -- "$name") ||
        die 69 "${name@Q}: no such program; type: sudo apt-get install -y ffmpeg (or name one with --ffmpeg)"
    # It may hang on a dead disk; whoever then kills this script does not reach it.
    answer=$(timeout --foreground -k 1 25 "$ffmpeg" -h muxer=image2 2>&1) || code=$?
    ((code != 124 && code != 137)) || die 69 "${ffmpeg@Q}: gives no answer within 25 s; try it by hand"
    [[ $answer =~ libavformat\ +([0-9]+)\.\ *([0-9]+) ]] ||
        die 78 "${ffmpeg@Q}: cannot be run (${answer%%$'\n'*}); install it again, or name another with --ffmpeg"
    version=$((BASH_REMATCH[1] * 1000 + BASH_REMATCH[2]))
    [[ $answer == *-atomic_writing* ]] ||
        die 78 "${ffmpeg@Q}: has no atomic_writing, frames would be seen half written; install FFmpeg 5.1 or newer"
    ((version >= 59027)) ||
        say "warning: ${ffmpeg@Q} is older than 5.1 and may publish truncated frames on a full disk; upgrade it"
}

# first_number DIR PREFIX: sets $number to the one after the highest in DIR. Reads each name once and nothing but names,
# and compares digits as text. A stale .tmp does not count: the frame of that number overwrites it.
first_number() {
    number=0
    [[ ! -d $1 ]] || number=$(LC_ALL=C find "$1" -mindepth 1 -maxdepth 1 -printf '%f\n' | PREFIX=$2 LC_ALL=C awk '
        BEGIN { prefix = ENVIRON["PREFIX"]; at = length(prefix) + 1; highest = "0" }
        substr($0, 1, at - 1) == prefix && substr($0, at) ~ /^[0-9]+(_thumbnail)?[.](jpg|json|wav)$/ {
            digits = substr($0, at)
            sub(/[^0-9].*/, "", digits)
            if (length(digits) > 18) next   # to Stillwatch no frame either
            sub(/^0+/, "", digits)
            longer = length(digits) - length(highest)
            if (longer > 0 || longer == 0 && digits "" > highest "") highest = digits
        }
        END { print highest }')
    number=$((number + 1)) first=$((10#0${setting[first]}))
    ((number >= first)) || number=$first
    # FFmpeg counts in a C int and goes on with negative numbers after it. What is left here is a year at 5 frames/s.
    ((number <= 2000000000)) ||
        die 78 "${1@Q}: the next number, $number, is near FFmpeg's last, 2147483647; move the highest numbers away"
}

# --- FFmpeg's command line -------------------------------------------------------------------------------------------

add() { command+=("$@"); }

# add_input: sets $loops where the recording is played again and again.
add_input() {
    local where=${setting[input]}
    loops=
    # Else FFmpeg takes up to 5 s to find out the rate before the first frame, and then publishes all it had taken.
    local live=(-thread_queue_size 64 -fpsprobesize 0)
    [[ -z ${setting[duration]} ]] || add -t "${setting[duration]}"
    case $profile in
        v4l2-*)
            [[ $where != *://* ]] || die 64 "--input: is a URL; that is for --profile url or rtsp"
            where=$(absolute "$where")
            [[ -c $where || -n ${wanted[dry-run]} ]] ||
                die 66 "$(shown "$where"): no such video device; plug it in, or find its name: ls -l /dev/v4l/by-path"
            add "${live[@]}" -f v4l2
            [[ -z ${wanted[copy]} ]] || add -input_format mjpeg
            [[ -z ${setting[input-fps]} ]] || add -framerate "${setting[input-fps]}"
            [[ -z ${setting[size]} ]] || add -video_size "${setting[size]}" ;;
        x11grab)
            add "${live[@]}" -f x11grab -framerate "$fps"
            [[ -z ${setting[size]} ]] || add -video_size "${setting[size]}"
            fps=0 ;;
        rtsp)
            [[ $where == rtsp?(s)://?* ]] || die 64 "--input $(shown "$where"): must be an rtsp:// URL"
            add "${live[@]}" -rtsp_transport "${setting[rtsp-transport]:-tcp}"
            # Before 5.0 -timeout meant to wait for a camera that calls us.
            if ((version >= 59016)); then add -timeout 10000000; else add -stimeout 10000000; fi ;;
        file)
            [[ $where != *://* ]] || die 64 "--input: is a URL; that is for --profile url or rtsp"
            where=$(absolute "$where")
            [[ -f $where && -r $where ]] || die 66 "$(shown "$where"): no such recording, or it may not be read"
            where=file:$where loops=1
            add -re -stream_loop -1 ;;
        url)
            [[ $where == [a-z]*([a-z0-9+.-])://?* ]] || die 64 "--input $(shown "$where"): must be a URL"
            [[ $where != http?(s):* ]] || add -rw_timeout 10000000
            if [[ -n ${wanted[live]} ]]; then add "${live[@]}"; else loops=1; add -re -stream_loop -1; fi ;;
        lavfi)
            [[ $where != *([a-z0-9+.-])://* ]] || die 64 "--input $(shown "$where"): a URL is for --profile url or rtsp"
            [[ $where == scene:* || -z ${setting[size]} ]] || die 64 "--size has no meaning for a graph; say it there"
            if [[ $where == scene:* ]]; then scene "${where#scene:}"; where=$graph fps=0; fi
            add -re -f lavfi ;;
    esac
    # Small pictures are decoded beside the copy: by one thread, which costs less CPU than handing them to several.
    [[ -z ${wanted[copy]} || -z ${wanted[hls]}${wanted[thumbnails]} ]] || add -threads:v 1
    add -i "$where"
}

# scene NAME[:FROM-TO]: sets $graph to a scripted picture at $fps, with a tone where sound is wanted.
scene() {
    local name=${1%%:*} span=6-12 size=${setting[size]:-1280x720} picture from to during
    local tone=sine=sample_rate=16000:samples_per_frame=800   # 50 ms, so that whole chunks are silent
    [[ $1 != *:* ]] || span=${1#*:}
    [[ $span =~ ^([0-9]{1,6})-([0-9]{1,6})$ ]] || die 64 "--input scene:$1: a fault's seconds are FROM-TO, as in 6-12"
    from=$((10#${BASH_REMATCH[1]})) to=$((10#${BASH_REMATCH[2]}))
    [[ $fps =~ ^[1-9][0-9]*$ ]] || die 64 "--fps $fps: a scene needs a whole number of frames per second"
    during="enable='between(t,$from-0.5/$fps,$to-0.5/$fps)'"   # half a frame off: no time lies on the edge
    picture=testsrc2=size=$size:rate=$fps
    case $name in
        live) ;;
        freeze)
            from=$((from * fps)) to=$((to * fps))
            picture+=",split[a][b];[a][b]freezeframes=first=$from:last=$((to - 1)):replace=$from" ;;
        black) picture+=",drawbox=color=black:t=fill:$during" ;;
        no-signal) picture+=",drawbox=color=0x0000BE:t=fill:$during" ;;
        bars) picture+="[a];smptebars=size=$size:rate=${fps}[b];[a][b]overlay=$during" ;;
        silence) tone+=",volume=volume=0:enable='gte(t,$from)*lt(t,$to)'" ;;
        *) die 64 "--input scene:$1: must be live, freeze, black, silence, no-signal or bars" ;;
    esac
    graph="${picture}[out0]"
    [[ -z ${wanted[audio]}${wanted[hls]} || -n ${setting[audio-input]} ]] || graph+=";${tone}[out1]"
}

# add_audio_input: sets $sound to the stream that sound is taken from.
add_audio_input() {
    local spec=${setting[audio-input]}
    sound=0:a:0
    [[ -n $spec ]] || return 0
    sound=1:a:0
    [[ -z ${setting[duration]} ]] || add -t "${setting[duration]}"
    if [[ $spec == lavfi:* ]]; then add -re; else add -thread_queue_size 64; fi
    add -f "${spec%%:*}" -i "${spec#*:}"
}

# thin TIME KEEP DROP: an expression, KEEP for frames to publish at $fps and DROP for the others. Register 0 says when
# the next one is due; up to 0.29 of an interval early is in time, so that jitter costs none. After a gap it begins
# anew. A clock that jumps back, or knows no time, keeps the frame. The fps filter would fill every gap with copies of
# one frame, which is a false freeze.
thin() {
    local due="if(lt(abs($1-ld(0)),1/$fps),ld(0),$1)+1/$fps"
    printf '%s' "if(between($1,ld(0)-2-2/$fps,ld(0)-0.29/$fps),$3,if(st(0,$due),$2,$2))"
}

# add_pictures [FILTER]: maps the video, thinned to $fps. passthrough: as in thin, no frame is ever repeated.
add_pictures() {
    local filters=("$@") IFS=,
    [[ $fps == 0 ]] || filters=("select='$(thin t 1 0)'" "$@")
    add -map 0:V:0
    ((${#filters[@]} == 0)) || add -vf "${filters[*]}"
    if ((version >= 59027)); then add -fps_mode passthrough; else add -vsync passthrough; fi
}

add_frames() {
    local drop='' names=$dir/${setting[prefix]}
    names=${names//%/%%}%09d
    first_number "$dir" "${setting[prefix]}"
    if [[ -z ${wanted[copy]} ]]; then
        add_pictures
        add -c:v mjpeg -q:v "${setting[quality]:-4}" -pix_fmt yuvj420p
    else
        add -map 0:V:0 -c:v copy
        [[ $fps == 0 ]] || ((version >= 59016)) ||
            die 78 "${ffmpeg@Q}: older than 5.0, it cannot leave out copied frames; upgrade it, or use --fps 0"
        [[ $fps == 0 ]] || drop=$(thin 'pts*tb' 0 1)
    fi
    if [[ -n $drop && $loops ]]; then
        # At the end of a loop FFmpeg before 6 ends its own bitstream filters for good, but not those of the tee muxer.
        # Its word is read three times over: for |, for the options, for the filters.
        names=${names//"\\"/"\\\\"} names=${names//"'"/"\\'"} names=${names//|/"\\|"}
        add -f tee "[f=image2:atomic_writing=1:start_number=$number:bsfs/v=noise=drop=\\\\\\'$drop\\\\\\']$names.jpg"
    else
        [[ -z $drop ]] || add -bsf:v "noise=drop='$drop'"
        add -f image2 -atomic_writing 1 -start_number "$number" "$names.jpg"
    fi
    [[ -n ${wanted[thumbnails]} ]] || return 0
    add_pictures scale=320:-2:flags=neighbor
    add -c:v mjpeg -q:v 8 -pix_fmt yuvj420p -f image2 -atomic_writing 1 -start_number "$number" "${names}_thumbnail.jpg"
}

# Packets of 50 ms make chunks of exactly a second; longer ones would keep a chunk open for longer after its end.
add_audio() {
    make_directory audio
    first_number "$dir/audio" audio_
    add -map "$sound" -af aresample=16000,asetnsamples=n=800:p=0 -c:a pcm_s16le -fflags +bitexact -map_metadata -1
    add -f segment -segment_format wav -segment_time 1 -reset_timestamps 1 -segment_start_number "$number"
    add "${dir//%/%%}/audio/audio_%09d.wav"
}

# append_list goes on after the segments that the playlist names, and deletes those in time. What it does not name would
# stay for ever: nobody knows any more that it is old.
add_hls() {
    local hls=$dir/hls file
    make_directory hls
    for file in "$hls"/live_*.ts "$hls"/live_*.ts.tmp; do
        [[ ${file##*/} =~ ^live_[0-9]{9}\.ts(\.tmp)?$ && -e $file && -z ${wanted[dry-run]} ]] || continue
        grep -qxFe "${file##*/}" -- "$hls/live.m3u8" 2>/dev/null || rm -f -- "$file"
    done
    add_pictures scale=640:360:flags=bilinear
    add -map "$sound?" -c:v libx264 -threads:v 1 -preset ultrafast -tune zerolatency -b:v 350k -pix_fmt yuv420p
    # FFmpeg's usual AAC coder would take a fifth of all CPU here.
    add -force_key_frames 'expr:gte(t,n_forced)' -c:a aac -aac_coder fast -b:a 32k -f hls -hls_time 1 -hls_list_size 5
    add -hls_flags temp_file+delete_segments+append_list+omit_endlist
    add -hls_segment_filename "$hls/live_%09d.ts" "$hls/live.m3u8"
}

make_directory() {
    local path=$dir/$1
    [[ -d $path || -n ${wanted[dry-run]} ]] || mkdir -- "$path" 2>/dev/null ||
        die 78 "${path@Q}: cannot be made; see if a file is in its place or the disk full"
}

# --- secrets ---------------------------------------------------------------------------------------------------------

# find_secrets: the URL's user and password, and its query, which may hold a token; and what to show instead.
# A password may hold / ? or # that should have been percent-encoded: all up to the last @ may be part of it. FFmpeg then
# takes what is before the first of these for host and port, and says so. In any setting, for one may be mistaken.
find_secrets() {
    local url first
    secrets=() masks=()
    for url in "${setting[@]}"; do
        if [[ $url =~ ^[^/]*:(//.*@) ]]; then
            first=${BASH_REMATCH[1]}
            secrets+=("$first") masks+=('//***@')
            first=${first#//} first=${first%%[/?#]*}
            [[ $first == *@ || $first != *:* ]] || { secrets+=("$first") masks+=('***'); }
        fi
        if [[ $url =~ ^[^/]*://[^?]*(\?.+)$ ]]; then secrets+=("${BASH_REMATCH[1]}") masks+=('?***'); fi
    done
}

masked() {
    local word=$1 at
    for at in "${!secrets[@]}"; do word=${word//"${secrets[at]}"/"${masks[at]}"}; done
    printf '%s' "$word"
}

# shown WORD: masked, and quoted where a shell needs it.
shown() {
    local word
    word=$(masked "$1")
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    printf '%s' "$word"
}

# mask_messages: FFmpeg's errors name the URL. If it has secrets they go through sed, which ends with FFmpeg.
mask_messages() {
    local at secret rules=()
    ((${#secrets[@]})) || return 0
    for at in "${!secrets[@]}"; do
        secret=$(printf '%s' "${secrets[at]}" | sed 's/[][\.*^$/]/\\&/g')
        rules+=(-e "s/$secret/${masks[at]//\//\\/}/g")
    done
    exec 2> >(trap '' INT TERM HUP; exec sed -u "${rules[@]}" 9<&- >&2)
}

# --- and go ----------------------------------------------------------------------------------------------------------

exec </dev/null
read_flags "$@"
find_secrets
check_settings
check_directory
find_ffmpeg
if [[ -z ${wanted[dry-run]} ]]; then
    exec 9<"$dir"
    flock -n 9 || die 75 "${dir@Q}: another capture publishes here; stop it, or use another directory"
fi

command=("$ffmpeg" -hide_banner -nostdin -nostats -loglevel "${setting[log-level]}")
add_input
add_audio_input
add_frames
[[ -z ${wanted[audio]} ]] || add_audio
[[ -z ${wanted[hls]} ]] || add_hls

line=$(for word in "${command[@]}"; do printf ' '; shown "$word"; done)
if [[ -n ${wanted[dry-run]} ]]; then
    printf '%s\n' "${line# }"
    exit 0
fi
say "exec$line"
mask_messages
exec "${command[@]}"
