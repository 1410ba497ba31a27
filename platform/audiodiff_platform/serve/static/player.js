// Gapless playback of loops. Two loops can be compared: the other one goes on at the same place of its cycle.

export class Player {
  #context;
  #gain;
  #source;
  #buffer;
  #started = 0;

  /** Decode an audio file (ArrayBuffer). */
  async decode(file) {
    this.#open();
    return this.#context.decodeAudioData(file);
  }

  get isPlaying() {
    return Boolean(this.#source);
  }

  /** The place in the loop, from 0 to 1. */
  get position() {
    if (!this.#source) return 0;
    return ((this.#context.currentTime - this.#started) / this.#buffer.duration) % 1;
  }

  set volume(value) {
    this.#open();
    this.#gain.gain.setTargetAtTime(value, this.#context.currentTime, 0.01);
  }

  /** Play a loop without a gap, from a place of its cycle. */
  async play(buffer, position = 0) {
    this.#open();
    await this.#context.resume();
    this.stop();
    const source = new AudioBufferSourceNode(this.#context, { buffer, loop: true });
    source.connect(this.#gain);
    this.#buffer = buffer;
    this.#started = this.#context.currentTime - position * buffer.duration;
    source.start(0, position * buffer.duration);
    this.#source = source;
  }

  stop() {
    this.#source?.stop();
    this.#source = undefined;
  }

  #open() {
    if (this.#context) return;
    this.#context = new AudioContext();
    this.#gain = new GainNode(this.#context, { gain: 0.8 });
    this.#gain.connect(this.#context.destination);
  }
}
